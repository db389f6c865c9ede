"""The recurrence that state-space models share, and two forms of it that can be read at a glance.

    S_t = exp(Δ_t A) S_{t−1} + Δ_t B_tᵀ x_t,   y_t = C_t S_t          S: Float[b h n e], states by channels of a head

S4D, Mamba and Mamba-2 are this with other shapes. Mamba (arXiv 2312.00752, algorithm 2) has heads one channel wide,
each with a decay A of its own for each of its n states, and one B and one C for all. Mamba-2 (arXiv 2405.21060 §7) has
wide heads, one decay for each, and groups of heads that share B and C. In S4D (arXiv 2206.11893) nothing depends on the
token, A is complex, and the output is the real part.

    name   shape       may be 1 long      name   shape       may be 1 long
    x      b t h e                        B, C   b t k n     b, t
    Δ      b t h       b, t, h            A      h n         n

- `sequential_scan` is the definition, token by token; `step_scan` is one step of it, for decoding;
- `associative_scan` combines neighbours, pairs of them, and so on: log₂ t steps, each for all tokens at once;
- the forms that train fast are in `selective.py` (Mamba), `dual.py` (Mamba-2) and `invariant.py` (S4D).

Re(Δ A) is at most 0 and no sum of it is ever taken out of a product, so that nothing overflows. Padding has Δ = 0: it
decays nothing and writes nothing. A document begins with an empty state: what it may not see is multiplied by an exact
0. `forms.run_scan` computes in float32 or better, under autocast too.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from einops import repeat
from jaxtyping import Float, Inexact, Int
from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class Scan(Protocol):
    """A form of the recurrence: the outputs, and the state after the last token.

    runs: the documents of each row, numbered along it; 0 is the one that `initial` is of; None when all is one.
    """

    def __call__(
        self,
        x: Float[Tensor, "b t h e"],
        dt: Float[Tensor, "#b #t #h"],
        A: Inexact[Tensor, "h #n"],
        B: Inexact[Tensor, "#b #t k n"],
        C: Inexact[Tensor, "#b #t k n"],
        runs: Int[Tensor, "b t"] | None,
        initial: Inexact[Tensor, "b h n e"],
    ) -> tuple[Float[Tensor, "b t h e"], Inexact[Tensor, "b h n e"]]: ...


def continues(runs: Int[Tensor, "b t"], like: Tensor) -> Float[Tensor, "b t"]:
    """1 where a token's document is that of the token before it (of the state, for the first), else 0."""
    return (runs == F.pad(runs[:, :-1], (1, 0))).to(like.dtype)


def by_head(x: Inexact[Tensor, "#b #t k n"], heads: int) -> Inexact[Tensor, "#b #t h n"]:
    """What a group of heads shares, for each of them."""
    return x if x.shape[2] == heads else repeat(x, "b t k n -> b t (k g) n", g=heads // x.shape[2])


def real(x: Inexact[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The real part."""
    return x.real if x.is_complex() else x


def is_selective(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> bool:
    """Whether these are Mamba's shapes: heads of one channel that all read one B and C, all for each token."""
    single = x.shape[3] == B.shape[2] == C.shape[2] == 1 and not A.is_complex()
    return single and dt.shape == x.shape[:3] and B.shape[:2] == C.shape[:2] == x.shape[:2]


def decays(
    dt: Float[Tensor, "#b #t #h"], A: Inexact[Tensor, "h #n"], runs: Int[Tensor, "b t"] | None
) -> Inexact[Tensor, "#b #t h #n"]:
    """exp(Δ A), and 0 where a document begins."""
    decay = (dt.unsqueeze(3) * A).exp()
    return decay if runs is None else decay * continues(runs, dt)[:, :, None, None]


def sequential_scan(
    x: Float[Tensor, "b t h e"],
    dt: Float[Tensor, "#b #t #h"],
    A: Inexact[Tensor, "h #n"],
    B: Inexact[Tensor, "#b #t k n"],
    C: Inexact[Tensor, "#b #t k n"],
    runs: Int[Tensor, "b t"] | None,
    initial: Inexact[Tensor, "b h n e"],
) -> tuple[Float[Tensor, "b t h e"], Inexact[Tensor, "b h n e"]]:
    """The definition, token by token."""
    heads, length = x.shape[2], x.shape[1]
    tensors = (decays(dt, A, runs), x * dt[..., None], by_head(B, heads), by_head(C, heads))
    each = (y.expand(-1, length, -1, -1).unbind(dim=1) for y in tensors)
    state, outputs = initial, []
    for decay, written, key, query in zip(*each, strict=True):
        state = decay[..., None] * state + key[..., None] * written[:, :, None]
        outputs.append((query[..., None] * state).sum(dim=2))
    return real(torch.stack(outputs, dim=1)), state


def step_scan(
    x: Float[Tensor, "b 1 h e"],
    dt: Float[Tensor, "#b 1 #h"],
    A: Inexact[Tensor, "h #n"],
    B: Inexact[Tensor, "#b 1 k n"],
    C: Inexact[Tensor, "#b 1 k n"],
    runs: Int[Tensor, "b 1"] | None,
    initial: Inexact[Tensor, "b h n e"],
) -> tuple[Float[Tensor, "b 1 h e"], Inexact[Tensor, "b h n e"]]:
    """One step, in as few operations as it takes: what decodes, where calling an operation is what costs."""
    heads = x.shape[2]
    key, query = (y.squeeze(1) if y.shape[2] == 1 else by_head(y, heads).squeeze(1) for y in (B, C))
    faded = decays(dt, A, runs).squeeze(1).unsqueeze(3) * initial
    written = (x * dt.unsqueeze(3)).squeeze(1).unsqueeze(2)
    state = torch.addcmul(faded, key.unsqueeze(3), written)
    return real((query.unsqueeze(2) @ state).transpose(1, 2)), state


def associative_scan(
    x: Float[Tensor, "b t h e"],
    dt: Float[Tensor, "#b #t #h"],
    A: Inexact[Tensor, "h #n"],
    B: Inexact[Tensor, "#b #t k n"],
    C: Inexact[Tensor, "#b #t k n"],
    runs: Int[Tensor, "b t"] | None,
    initial: Inexact[Tensor, "b h n e"],
) -> tuple[Float[Tensor, "b t h e"], Inexact[Tensor, "b h n e"]]:
    """The same in log₂ t steps, with all t states in memory at once."""
    heads, length = x.shape[2], x.shape[1]
    decay = decays(dt, A, runs).expand(-1, length, -1, -1)[..., None]
    written = by_head(B, heads)[..., None] * (x * dt[..., None])[:, :, :, None]
    first = written[:, :1] + decay[:, :1] * initial[:, None]
    states = prefix(decay, torch.cat([first, written[:, 1:]], dim=1))
    return real((by_head(C, heads)[..., None] * states).sum(dim=3)), states[:, -1]


def prefix(
    a: Inexact[Tensor, "#b t h #n 1"], u: Inexact[Tensor, "b t h n e"]
) -> Inexact[Tensor, "b t h n e"]:
    """S_t = a_t S_{t−1} + u_t from S_{−1} = 0, by the associative rule (a, u) ∘ (a′, u′) = (a a′, a′ u + u′).

    Each pair of neighbours becomes one step; the states after pairs give those between them. 2t products in all.
    """
    length = u.shape[1]
    if length == 1:
        return u
    early, late, even = slice(0, length - 1, 2), slice(1, None, 2), slice(2, None, 2)
    after = prefix(a[:, early] * a[:, late], a[:, late] * u[:, early] + u[:, late])
    between = a[:, even] * after[:, : (length - 1) // 2] + u[:, even]
    evens = torch.cat([u[:, :1], between], dim=1)
    paired = torch.stack([evens[:, : length // 2], after], dim=2).flatten(1, 2)
    return torch.cat([paired, evens[:, length // 2 :]], dim=1)
