"""Mamba's mixer (Gu and Dao 2023, arXiv 2312.00752): a state-space model whose step, input and output go by the token.

    u, z = split(x W_in),   u ← SiLU(conv₄(u))                                                       (figure 3)
    r, B, C = split(u W_x),   Δ = softplus(r W_Δ + δ)                                                 (§3.2, §3.6)
    S_t = exp(Δ_t A) ⊙ S_{t−1} + (Δ_t u_t) B_t,   y_t = C_t·S_t + D u_t       for each channel        (algorithm 2)
    out = (y ⊙ SiLU(z)) W_out

A = −exp(A_log) is fixed, n numbers for each of the i = 2d channels. A large step Δ_t writes the token and forgets what
was before; a step near 0 passes it over. B is discretized by Euler's rule, Δ B, as in the authors' code, where §2 has
the zero-order hold. The mixer is the whole block: no feed-forward part follows, and two of them take the place of one
attention and its feed-forward (§3.4).

First weights (§3.6 and the authors' code): A_log = log(1 … n), D = 1, W_Δ uniform within ±r^{−½}, and δ such that the
steps are log-uniform in (0.001, 0.1), at least 0.0001. None of these belongs to a linear map by type, so that no other
initialization overwrites them and no weight decay pulls at them.

Jamba (arXiv 2403.19887 §3.2) normalizes r, B and C, and FalconMamba (arXiv 2410.05355) without a gain: `inner_norm`.
Padding enters neither the convolution nor the state.
Cost per sequence: O(t·i·(d + n)), and a state of i·(n + 3) numbers, whatever the length. About 6d² weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.normalization import NoNormConfig
from ...base.sockets import Context, Enhancement, Layer, MixerConfig, NormConfig, OutputProjection, Size
from ..attention.recurrence import RecurrentState, Segments, check_causal_context
from ..attention.replacement import replace_causal_attention
from ..attention.short_convolution import ShortConvolution
from .forms import run_scan

States = Annotated[int, Ge(1), Le(2**16)]
"""A number of states."""


def first_steps(width: int) -> Float[Tensor, " _"]:
    """softplus⁻¹ of steps that are log-uniform in (0.001, 0.1): the bias that gives such steps."""
    step = torch.empty(width).uniform_(math.log(0.001), math.log(0.1)).exp().clamp(min=1e-4)
    return step + (-torch.expm1(-step)).log()


class StepProjection(nn.Module):
    """Δ = softplus(r W + δ), in float32 or better; no `nn.Linear`, so that its first weights stay."""

    def __init__(self, rank: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.bias = nn.Parameter(first_steps(width))

    def forward(self, x: Float[Tensor, "b t _"]) -> Float[Tensor, "b t i"]:
        """Return the step of each channel."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.softplus(F.linear(x, self.weight).to(wide) + self.bias.to(wide))


class Mamba(Layer):
    """A selective state-space model between two maps, with a short convolution before it and a gate after it."""

    def __init__(self, d_model: int, config: MambaConfig) -> None:
        super().__init__()
        d_inner, d_state = config.d_inner or 2 * d_model, config.d_state
        rank = config.dt_rank or math.ceil(d_model / 16)
        self.widths = (rank, d_state, d_state)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=config.bias)
        self.convolution = ShortConvolution(d_inner, config.convolution, config.conv_bias)
        self.x_proj = nn.Linear(d_inner, sum(self.widths), bias=False)
        self.dt_norm, self.B_norm, self.C_norm = (config.inner_norm.build(width) for width in self.widths)
        self.dt_proj = StepProjection(rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = OutputProjection(d_inner, d_model, bias=config.bias)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Let each token choose what of the past to keep, what of itself to add, and what to read."""
        check_causal_context(context, "Mamba")
        segments = Segments.of(context.layout, len(x), state)
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.convolution(u, segments, state))
        low, B, C = self.x_proj(u).split(self.widths, dim=-1)
        dt, B, C = self.dt_proj(self.dt_norm(low)), self.B_norm(B), self.C_norm(C)
        A = -self.A_log.to(dt.dtype).exp()
        y = run_scan(u[..., None], dt, A, B[:, :, None], C[:, :, None], segments, state, context)[..., 0]
        return self.out_proj((y + self.D * u).to(x.dtype) * F.silu(gate))  # type: ignore[no-any-return]

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


@dataclass(frozen=True)
class MambaConfig(MixerConfig):
    """Mamba's mixer. d_inner: null is 2·d_model. d_state: n. dt_rank: r's width; null is ⌈d_model/16⌉.

    convolution: the tokens that it sees. conv_bias: its own; bias: of the outer maps. inner_norm: of r, B and C.
    """

    kind: ClassVar[str] = "mamba"
    causal_only: ClassVar[bool] = True
    d_inner: Size | None = None
    d_state: States = 16
    dt_rank: Size | None = None
    convolution: Annotated[int, Ge(2), Le(1024)] = 4
    conv_bias: bool = True
    bias: bool = False
    inner_norm: NormConfig = NoNormConfig()

    def build(self, d_model: int) -> Mamba:
        return Mamba(d_model, self)


def selective_state_space(d_state: int = 16) -> Enhancement:
    """Use Mamba's mixer instead of softmax self-attention, but in encoders."""
    return replace_causal_attention(lambda part: MambaConfig(d_state=d_state))
