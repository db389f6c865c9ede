"""DeltaNet (Yang et al. 2024, arXiv 2406.06484; the rule: Schlag et al. 2021, arXiv 2102.11174).

    S_t = S_{t−1} − β_t k_tᵀ (k_t S_{t−1} − v_t) = (I − β_t k_tᵀ k_t) S_{t−1} + β_t k_tᵀ v_t,   o_t = q_t S_t

(S is keys by values, the transpose of the papers'.) Linear attention adds every value to the state; this first reads
what the state holds under the key and writes the difference, a step of gradient descent on ½‖k S − v‖² of size β.
Queries and keys are SiLU of a short convolution, divided by their length, so that I − β kᵀk shrinks nothing but along
k, and by at most 1 there; β = σ(x W_β), one for each head. An RMSNorm over each head comes before W_O (§3.4).

In a chunk the differences u_t depend on one another: u_t = β_t (v_t − k_t S_0 − Σ_{s<t} (k_t·k_s) u_s), a triangular
system (the WY form, §3.2, with the inverse of §B by substitution), after which the chunk is a linear attention over
values u. `delta_scan` has the decay of the gated rule (arXiv 2412.06464) as well; 0 is this one.
Order needs no scheme; one that rotates is left to the other mixers of the stack.
Cost per sequence: O(t·(C + e)·d) beside the projections, about twice linear attention's, in chunks of C tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Context, Enhancement, Layer, MixerConfig, OutputProjection
from ..normalization.rms_norm import RMSNorm
from .recurrence import (
    CHUNK,
    Chunks,
    RecurrentState,
    Segments,
    check_causal_context,
    continues,
    pair_decays,
    run_form,
)
from .replacement import head_width, replace_causal_attention
from .short_convolution import ShortConvolution


def delta_scan(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t _"],
    log_decay: Float[Tensor, "#b #h t 1"],
    beta: Float[Tensor, "b h t 1"],
    segments: Segments,
    state: RecurrentState | None = None,
) -> Float[Tensor, "b h t _"]:
    """Return o_t for every token; the state's matrix is read and replaced. `log_decay` is at most 0."""
    form = chunked_delta_scan if q.shape[2] > 1 else recurrent_delta_scan
    return run_form(form, q, k, v, log_decay, beta, segments=segments, state=state)


def recurrent_delta_scan(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t _"],
    log_decay: Float[Tensor, "#b #h t 1"],
    beta: Float[Tensor, "b h t 1"],
    runs: Int[Tensor, "b t"] | None,
    initial: Float[Tensor, "b h e _"],
) -> tuple[Float[Tensor, "b h t _"], Float[Tensor, "b h e _"]]:
    """The definition, token by token."""
    decay = log_decay.exp() * continues(runs, q)
    state, outputs = initial, []
    for t in range(q.shape[2]):
        state = state * decay[:, :, t, :, None]
        found = torch.einsum("bhe,bhef->bhf", k[:, :, t], state)
        difference = beta[:, :, t] * (v[:, :, t] - found)
        state = state + k[:, :, t, :, None] * difference[:, :, None, :]
        outputs.append(torch.einsum("bhe,bhef->bhf", q[:, :, t], state))
    return torch.stack(outputs, dim=2), state


def chunked_delta_scan(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t _"],
    log_decay: Float[Tensor, "#b #h t 1"],
    beta: Float[Tensor, "b h t 1"],
    runs: Int[Tensor, "b t"] | None,
    initial: Float[Tensor, "b h e _"],
    size: int = CHUNK,
) -> tuple[Float[Tensor, "b h t _"], Float[Tensor, "b h e _"]]:
    """The same by matrix products and one triangular system for each chunk: u = from_values − from_state S_0."""
    chunks = Chunks.of(q, runs, size)
    width = v.shape[-1]
    q, k, v, log_decay, beta = (chunks.cut(x) for x in (q, k, v, log_decay, beta))
    into, out_of, whole = chunks.decays(log_decay)
    decays = pair_decays(log_decay) * chunks.pairs
    system = ((beta * k) @ k.mT * decays).tril(-1)
    known = torch.cat([beta * v, beta * k * into], dim=-1)
    solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
    from_values, from_state, keys = solved[..., :width], solved[..., width:], (k * out_of).mT
    state, found, differences = initial, [], []
    for n in range(k.shape[2]):
        found.append(state)
        differences.append(from_values[:, :, n] - from_state[:, :, n] @ state)
        state = state * whole[:, :, n] + keys[:, :, n] @ differences[-1]
    inside = (q @ k.mT * decays) @ torch.stack(differences, dim=2)
    return chunks.join(inside + (q * into) @ torch.stack(found, dim=2)), state


def unit(x: Float[Tensor, "*b e"]) -> Float[Tensor, "*b e"]:
    """x / √(‖x‖² + 1e-6), in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + 1e-6)


class DeltaNet(Layer):
    """Multi-head attention by the delta rule."""

    def __init__(self, d_model: int, n_heads: int, convolution: int = 4) -> None:
        super().__init__()
        self.n_heads = n_heads
        d_head = head_width(d_model, n_heads)
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.beta_proj = nn.Linear(d_model, n_heads, bias=False)
        self.convolution = ShortConvolution(3 * d_model, convolution)
        self.norm = RMSNorm(d_head)
        self.out_proj = OutputProjection(d_model, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Read the state in which each token so far has replaced what stood under its key."""
        check_causal_context(context, "DeltaNet")
        segments = Segments.of(context.layout, len(x), state)
        projected = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)
        mixed = F.silu(self.convolution(projected, segments, state))
        q, k, v = rearrange(mixed, "b t (z h e) -> z b h t e", z=3, h=self.n_heads)
        beta = rearrange(self.beta_proj(x).sigmoid(), "b t h -> b h t 1")
        no_decay = v.new_zeros(1, 1, v.shape[2], 1)
        out = self.norm(delta_scan(unit(q), unit(k), v, no_decay, beta, segments, state))
        return self.out_proj(rearrange(out, "b h t e -> b t (h e)"))  # type: ignore[no-any-return]

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


@dataclass(frozen=True)
class DeltaNetConfig(MixerConfig):
    """DeltaNet. convolution: how many tokens the short convolution reads."""

    kind: ClassVar[str] = "delta_net"
    causal_only: ClassVar[bool] = True
    n_heads: Annotated[int, Ge(1)] = 8
    convolution: Annotated[int, Ge(2)] = 4

    def build(self, d_model: int) -> DeltaNet:
        return DeltaNet(d_model, self.n_heads, self.convolution)


def delta_net() -> Enhancement:
    """Use DeltaNet instead of softmax self-attention, but in encoders."""
    return replace_causal_attention(lambda part: DeltaNetConfig(part.n_heads))
