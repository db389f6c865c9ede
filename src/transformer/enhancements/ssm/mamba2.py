"""Mamba-2's mixer (Dao and Gu 2024, arXiv 2405.21060 §7): heads with one decay each, for matrix products.

    z, u, B, C, r = split(x W_in),   u, B, C ← SiLU(conv₄(u, B, C)),   Δ = softplus(r + δ)              (figure 6)
    S_t = exp(Δ_t A) S_{t−1} + B_tᵀ (Δ_t u_t),   y_t = C_t S_t + D u_t         for each head             (§6)
    out = RMSNorm_groups(y ⊙ SiLU(z)) W_out

What changed of Mamba: A = −exp(A_log) is one number for each head of e = 64 channels, Δ and D too; B and C come from
the block's input beside u, not from u, and are shared by the heads of a group; states are many, n = 128, which the
chunked form makes cheap; a norm follows the gate, over each group's channels by itself. First weights: exp(A_log)
uniform in (1, 16), D = 1, steps log-uniform in (0.001, 0.1); they belong to no linear map.

The recurrence is linear attention with C as queries, B as keys and u as values, and one learned decay a head (§5): the
paper's duality. Cost per sequence: O(t·i·(d + n + C)) in chunks of C tokens, and a state of i·n numbers. About 6d²
weights at the usual sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Context, Enhancement, Layer, MixerConfig, OutputProjection, Size
from ..attention.recurrence import RecurrentState, Segments, check_causal_context
from ..attention.replacement import replace_causal_attention
from ..attention.short_convolution import ShortConvolution
from .forms import run_scan
from .mamba import States, first_steps


class GatedRMSNorm(nn.Module):
    """RMSNorm of x ⊙ SiLU(z), over each group's channels by itself, in float32 or better.

    The gate comes before the norm: the other order, Gated DeltaNet's, is another function.
    """

    def __init__(self, width: int, n_groups: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.n_groups, self.epsilon = n_groups, epsilon

    def forward(self, x: Float[Tensor, "b t i"], gate: Float[Tensor, "b t i"]) -> Float[Tensor, "b t i"]:
        """Gate, then normalize."""
        wide = torch.promote_types(gate.dtype, torch.float32)
        gated = rearrange(x.to(wide) * F.silu(gate.to(wide)), "b t (k e) -> b t k e", k=self.n_groups)
        normed = gated * torch.rsqrt(gated.square().mean(dim=-1, keepdim=True) + self.epsilon)
        return (rearrange(normed, "b t k e -> b t (k e)") * self.weight).to(gate.dtype)


class Mamba2(Layer):
    """A selective state-space model by heads, with a short convolution before it and a gated norm after it."""

    def __init__(self, d_model: int, config: Mamba2Config) -> None:
        super().__init__()
        d_inner = config.d_inner or 2 * d_model
        n_heads, groups = _heads(d_inner, config.d_head, config.n_groups), config.n_groups
        shared = groups * config.d_state
        self.n_groups, self.d_head = groups, config.d_head
        self.widths, self.parts = (d_inner, d_inner + 2 * shared, n_heads), (d_inner, shared, shared)
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=config.bias)
        self.convolution = ShortConvolution(self.widths[1], config.convolution, config.conv_bias)
        self.dt_bias = nn.Parameter(first_steps(n_heads))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(n_heads))
        self.norm = GatedRMSNorm(d_inner, groups, config.epsilon)
        self.out_proj = OutputProjection(d_inner, d_model, bias=config.bias)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Let each head choose how much of its state to keep, what to add to it, and what to read."""
        check_causal_context(context, "Mamba-2")
        segments = Segments.of(context.layout, len(x), state)
        gate, mixed, low = torch.split(self.in_proj(x), list(self.widths), dim=-1)
        mixed = F.silu(self.convolution(mixed, segments, state))
        parts = torch.split(mixed, list(self.parts), dim=-1)
        u = rearrange(parts[0], "b t (h e) -> b t h e", e=self.d_head)
        B, C = (rearrange(y, "b t (k n) -> b t k n", k=self.n_groups) for y in parts[1:])
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(low.to(wide) + self.dt_bias.to(wide))
        y = run_scan(u, dt, -self.A_log.to(wide).exp()[:, None], B, C, segments, state, context)
        y = rearrange(y + self.D.to(wide)[:, None] * u, "b t h e -> b t (h e)")
        return self.out_proj(self.norm(y, gate))  # type: ignore[no-any-return]

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


def _heads(d_inner: int, d_head: int, n_groups: int) -> int:
    """The number of heads; ValueError where channels or groups do not come out even."""
    if d_inner % d_head or (d_inner // d_head) % n_groups:
        raise ValueError(
            f"an inner width of {d_inner} cannot be split into heads of d_head {d_head} in n_groups {n_groups} equal "
            f"groups; d_inner must be a multiple of {d_head * n_groups}"
        )
    return d_inner // d_head


@dataclass(frozen=True)
class Mamba2Config(MixerConfig):
    """Mamba-2's mixer. d_inner: null is 2·d_model. d_state: n. d_head: e. n_groups: of heads that share B and C.

    convolution: the tokens that it sees. conv_bias, bias: of the convolution, of the outer maps. epsilon: of the norm.
    """

    kind: ClassVar[str] = "mamba2"
    causal_only: ClassVar[bool] = True
    d_inner: Size | None = None
    d_state: States = 128
    d_head: Size = 64
    n_groups: Size = 1
    convolution: Annotated[int, Ge(2), Le(1024)] = 4
    conv_bias: bool = True
    bias: bool = False
    epsilon: Annotated[float, Gt(0)] = 1e-5

    def build(self, d_model: int) -> Mamba2:
        return Mamba2(d_model, self)


def state_space_duality(d_state: int = 128, d_head: int = 64) -> Enhancement:
    """Use Mamba-2's mixer instead of softmax self-attention, but in encoders."""
    return replace_causal_attention(lambda part: Mamba2Config(d_state=d_state, d_head=d_head))
