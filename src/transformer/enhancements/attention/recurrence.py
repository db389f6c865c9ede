"""The recurrence that linear attentions share, and the state that they keep while decoding.

    S_t = diag(a_t) S_{t−1} + k_tᵀ v_t,   o_t = q_t S_t          S: Float[b h e _], keys by values

a_t is a decay in (0, 1], given by its logarithm: none (0), one for a head, or one for each entry of its keys.
Two forms of it, equal in value and gradient:

- `recurrent_scan`, the definition, token by token: O(e²) for each head and token, for decoding;
- `chunked_scan` (arXiv 2312.06635 §4), for training: inside a chunk of C tokens every query meets every key, in
  matrix products; what lies before the chunk is met through the one state that the chunk found: O(C·e + e²).

Only sums of log-decays over the tokens between a key and its query are ever raised to a power. They are at most 0, so
nothing overflows, and no difference of two large sums is taken, so nothing is lost, however strong the decay. Padding
writes nothing and decays nothing. A document begins with an empty state: what it may not see is multiplied by an exact
0, so its outputs and gradients are those it has alone. Computed in float32 or better, under autocast too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...base.sockets import Context, Layout, Position

CHUNK = 64
"""Tokens of a chunk, a power of two: how to compute, not what."""


class RecurrentState:
    """What a recurrent mixer keeps between calls: tensors by name, one row for each of the batch, of constant size."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def select(self, rows: Int[Tensor, " _"]) -> None:
        """Keep these rows of the batch, in this order."""
        self.tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Segments:
    """Which tokens of a call are real, and which stand in one document.

    real: False for padding; None when there is none. runs: the documents of each row, numbered along it; 0 is the one
    that the state is of, and padding belongs to the document before it. None when a row is all one document.
    """

    real: Bool[Tensor, "b t"] | None
    runs: Int[Tensor, "b t"] | None

    @classmethod
    def of(cls, layout: Layout, batch: int, state: RecurrentState | None = None) -> Segments:
        """Compare each token's document with that of the real token before it, and note the last one in `state`."""
        if layout.documents is None:
            return cls(layout.real, None)
        documents = layout.documents.expand(batch, -1)
        real = torch.ones_like(documents, dtype=torch.bool) if layout.real is None else layout.real
        index = torch.arange(documents.shape[1], device=documents.device)
        latest = torch.where(real, index, -1).cummax(dim=1).values
        before = F.pad(latest[:, :-1], (1, 0), value=-1)
        kept = {} if state is None else state.tensors
        previous = torch.where(
            before < 0, kept.get("document", documents), documents.gather(1, before.clamp(min=0))
        )
        if state is not None:
            last = documents.gather(1, latest[:, -1:].clamp(min=0))
            state.tensors["document"] = torch.where(latest[:, -1:] < 0, kept.get("document", last), last)
        return cls(layout.real, ((documents != previous) & real).cumsum(dim=1))

    def erase(self, x: Float[Tensor, "#b #h t _"]) -> Float[Tensor, "#b #h t _"]:
        """Zero at padding."""
        return x if self.real is None else x.masked_fill(~self.real[:, None, :, None], 0.0)


def check_context(context: Context, mixer: str) -> None:
    """Refuse a window and a bias on the scores, of which a mixer that has no scores would take no notice."""
    if context.mask.window is not None:
        raise ValueError(
            f"{mixer} cannot forget beyond a window, but the mask has window={context.mask.window}; "
            "use sliding_window attention, or a mask without a window"
        )
    if type(context.position).bias is not Position.bias:
        raise ValueError(
            f"{mixer} has no scores to add a bias to, so {type(context.position).__name__} would have no effect; "
            "use rotary, sinusoidal or learned positions, or none"
        )


def check_causal_context(context: Context, mixer: str) -> None:
    """Refuse, besides, a stack whose tokens see later ones, such as an encoder."""
    check_context(context, mixer)
    if not context.mask.causal:
        raise ValueError(
            f"{mixer} reads from left to right, but this stack is not causal; "
            "use linear_attention or performer in an encoder"
        )


# ---------------------------------------------------------------- from a mixer's tensors to a scan and back

Form = Callable[..., tuple[Tensor, Tensor]]
"""A scan: tensors of a call, `runs`, and the state before it → the outputs, and the state after it."""


def scan(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t _"],
    log_decay: Float[Tensor, "#b #h t #e"],
    segments: Segments,
    state: RecurrentState | None = None,
    name: str = "matrix",
) -> Float[Tensor, "b h t _"]:
    """Return o_t for every token; the state's matrix of this name is read and replaced. `log_decay` is at most 0."""
    form = chunked_scan if q.shape[2] > 1 else recurrent_scan
    return run_form(form, q, k, v, log_decay, segments=segments, state=state, name=name)


def run_form(
    form: Form,
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t _"],
    log_decay: Float[Tensor, "#b #h t #e"],
    *others: Tensor,
    segments: Segments,
    state: RecurrentState | None,
    name: str = "matrix",
) -> Float[Tensor, "b h t _"]:
    """Run a form of a recurrence in float32 or better, without its padding, from the state and back to it."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device.type):
        wide = [x.to(dtype) for x in (q, segments.erase(k), v, segments.erase(log_decay), *others)]
        kept = {} if state is None else state.tensors
        shape = *q.shape[:2], q.shape[3], v.shape[3]
        initial = kept[name] if name in kept else torch.zeros(shape, dtype=dtype, device=q.device)
        out, matrix = form(*wide, runs=segments.runs, initial=initial)
    if state is not None:
        state.tensors[name] = matrix
    return out.to(v.dtype)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Computation in the types that tensors have; nothing to enter where that is so already, as in most decoding."""
    enabled = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def continues(runs: Int[Tensor, "b t"] | None, like: Float[Tensor, "b h t e"]) -> Float[Tensor, "#b 1 t 1"]:
    """1 where a token's document is that of the token before it (of the state, for the first), else 0."""
    if runs is None:
        return torch.ones(1, 1, like.shape[2], 1, dtype=like.dtype, device=like.device)
    return (runs == F.pad(runs[:, :-1], (1, 0)))[:, None, :, None].to(like.dtype)


def recurrent_scan(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t _"],
    log_decay: Float[Tensor, "#b #h t #e"],
    runs: Int[Tensor, "b t"] | None,
    initial: Float[Tensor, "b h e _"],
) -> tuple[Float[Tensor, "b h t _"], Float[Tensor, "b h e _"]]:
    """The definition, token by token."""
    decay = log_decay.exp() * continues(runs, q)
    state, outputs = initial, []
    for t in range(q.shape[2]):
        state = state * decay[:, :, t, :, None] + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(torch.einsum("bhe,bhef->bhf", q[:, :, t], state))
    return torch.stack(outputs, dim=2), state


# ---------------------------------------------------------------- chunks


@dataclass(frozen=True)
class Chunks:
    """The tokens of a call cut into chunks, and who sees whom there: factors 1 and 0, by which all else is multiplied.

    pairs: token t sees token s of its chunk. enters: token t sees the state that its chunk found. leaves: token t is
    in the state that its chunk leaves. lasts: so is the state that it found.
    """

    length: int
    size: int
    pairs: Float[Tensor, "#b 1 _ t t"]
    enters: Float[Tensor, "#b 1 _ #t 1"]
    leaves: Float[Tensor, "#b 1 _ #t 1"]
    lasts: Float[Tensor, "#b 1 _ 1 1"]

    @classmethod
    def of(cls, x: Float[Tensor, "b h t e"], runs: Int[Tensor, "b t"] | None, size: int = CHUNK) -> Chunks:
        """Chunks of `size` tokens, or of the next power of two when there are fewer."""
        length = x.shape[2]
        size = min(size, 1 << (length - 1).bit_length())
        one = x.new_ones(1, 1, 1, 1, 1)
        lower = x.new_ones(1, 1, 1, size, size).tril()
        if runs is None:
            return cls(length, size, lower, one, one, one)
        last = runs[:, -1:].expand(-1, -length % size)
        cut = rearrange(torch.cat([runs, last], dim=1), "b (n c) -> b 1 n c 1", c=size)
        end = cut[:, :, :, -1:]
        found = F.pad(end[:, :, :-1], (0, 0, 0, 0, 1, 0))
        same = (cut == cut.mT, cut == found, cut == end, found == end)
        pairs, enters, leaves, lasts = (mask.to(x.dtype) for mask in same)
        return cls(length, size, pairs * lower, enters, leaves, lasts)

    def cut(self, x: Float[Tensor, "#b #h t _"]) -> Float[Tensor, "#b #h _ _ _"]:
        """Cut into chunks; the last one is filled up with zeros: keys that write nothing, and no decay."""
        return rearrange(
            F.pad(x, (0, 0, 0, -self.length % self.size)), "b h (n c) e -> b h n c e", c=self.size
        )

    def join(self, x: Float[Tensor, "b h _ _ _"]) -> Float[Tensor, "b h t _"]:
        """Undo `cut`."""
        return rearrange(x, "b h n c e -> b h (n c) e")[:, :, : self.length]

    def decays(
        self, log_decay: Float[Tensor, "#b #h _ t #e"]
    ) -> tuple[Float[Tensor, "#b #h _ t #e"], Float[Tensor, "#b #h _ t #e"], Float[Tensor, "#b #h _ #e 1"]]:
        """From the chunk's beginning to each token, from each to the end, and of the whole chunk, where they count."""
        into, out_of = log_decay.cumsum(dim=-2).exp(), sums_after(log_decay).exp()
        whole = rearrange(log_decay.sum(dim=-2, keepdim=True).exp(), "b h n 1 e -> b h n e 1")
        return into * self.enters, out_of * self.leaves, whole * self.lasts


def sums_after(x: Float[Tensor, "... t e"]) -> Float[Tensor, "... t e"]:
    """Σ_{m>t} x_m, by adding from the end."""
    return F.pad(x[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(dim=-2).flip(-2)


def chunked_scan(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t _"],
    log_decay: Float[Tensor, "#b #h t #e"],
    runs: Int[Tensor, "b t"] | None,
    initial: Float[Tensor, "b h e _"],
    size: int = CHUNK,
) -> tuple[Float[Tensor, "b h t _"], Float[Tensor, "b h e _"]]:
    """The same by matrix products, chunk by chunk; one chunk for all is the parallel form."""
    chunks = Chunks.of(q, runs, size)
    q, k, v, log_decay = (chunks.cut(x) for x in (q, k, v, log_decay))
    into, out_of, whole = chunks.decays(log_decay)
    written = (k * out_of).mT @ v
    state, found = initial, []
    for n in range(written.shape[2]):
        found.append(state)
        state = state * whole[:, :, n] + written[:, :, n]
    scores = pair_scores(q, k, log_decay) * chunks.pairs
    return chunks.join(scores @ v + (q * into) @ torch.stack(found, dim=2)), state


def pair_scores(
    q: Float[Tensor, "b h _ t e"], k: Float[Tensor, "b h _ t e"], log_decay: Float[Tensor, "#b #h _ t #e"]
) -> Float[Tensor, "b h _ t t"]:
    """Σ_e q_te k_se Π_{s<m≤t} a_me for each t ≥ s; anything finite for the others."""
    return (q @ k.mT) * pair_decays(log_decay) if log_decay.shape[-1] == 1 else _split_scores(q, k, log_decay)


def pair_decays(log_decay: Float[Tensor, "#b #h _ t 1"]) -> Float[Tensor, "#b #h _ t t"]:
    """Π_{s<m≤t} a_m for each t ≥ s, each sum taken by itself; 1 for the others."""
    each = log_decay.expand(*log_decay.shape[:-1], log_decay.shape[-2])
    return each.tril(-1).cumsum(dim=-2).exp()


def _split_scores(
    q: Float[Tensor, "... t e"], k: Float[Tensor, "... t e"], log_decay: Float[Tensor, "... t e"]
) -> Float[Tensor, "... t t"]:
    """The scores where each entry of a key decays by itself, so that a decay cannot be taken out of their sum.

    Split in two: a key of the first half decays to its end, then to a query of the second half; both are at most 1,
    so each can be multiplied in before the product. Pairs within a half are split again, log₂ t times in all.
    """
    if q.shape[-2] == 1:
        return (q * k).sum(dim=-1, keepdim=True)
    (q1, q2), (k1, k2), (g1, g2) = (rearrange(x, "... (z t) e -> z ... t e", z=2) for x in (q, k, log_decay))
    across = (q2 * g2.cumsum(dim=-2).exp()) @ (k1 * sums_after(g1).exp()).mT
    first, second = _split_scores(torch.stack([q1, q2]), torch.stack([k1, k2]), torch.stack([g1, g2]))
    upper = torch.cat([first, torch.zeros_like(first)], dim=-1)
    return torch.cat([upper, torch.cat([across, second], dim=-1)], dim=-2)
