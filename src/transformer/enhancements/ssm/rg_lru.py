"""Griffin's recurrent block (De et al. 2024, arXiv 2402.19427 §2.3): a gated linear recurrence beside a gate.

    x = conv₄(z W_in + b_in) + b_conv,   out = (GELU(z W_g + b_g) ⊙ RG-LRU(x)) W_out + b_out           (figure 2c)

with the real-gated linear recurrent unit (§2.4), for each channel:

    r_t = σ(x_t W_a + b_a),   i_t = σ(x_t W_x + b_x)                                          (equations 1 and 2)
    log a_t = −c · softplus(Λ) · r_t,   c = 8                                           (equation 3, appendix A)
    h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ (i_t ⊙ x_t)                                                 (equation 4)

The gates see the token and never the state, so that the recurrence is linear in h. Where r ≈ 0 the state passes the
token by; √(1 − a²) keeps the state of one size whatever the decay.

How this differs from the paper, each time as the published code and weights of RecurrentGemma (arXiv 2404.07839): at
position 0 of a document the factor √(1 − a²) is 1, since there is no state to make room beside; W_a and W_x have a
block for each head (§4.1 has blocks too, of another number); where §2.4 says a = σ(Λ), Λ has the opposite sign; GELU is
in its tanh form; the gradient of the root is bounded by 1000, where it would be infinite at a = 1.

First weights: Λ such that aᶜ is uniform in (0.9, 0.999), as in §2.4 (the published code draws a², in (0.9², 0.999²));
W_a and W_x as LeCun's, N(0, 1/inputs), biases 0. They belong to no linear map, so no other initialization overwrites
them and no weight decay pulls at them. Padding enters neither the convolution nor the state.

Cost per sequence: O(t·i·(d + i/h)), and a state of 4·i numbers, whatever the length. About 3·d·i + 2·i²/h weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Context, Enhancement, Layer, MixerConfig, OutputProjection, Size
from ..attention.recurrence import RecurrentState, Segments, check_causal_context
from ..attention.replacement import replace_causal_attention
from ..attention.short_convolution import ShortConvolution
from .linear_recurrence import run_recurrence

SHARPNESS = 8.0
"""c: as many times, at most, the decay a is taken at one token."""
STEEPEST = 1000.0
"""The bound of the root's gradient."""


def first_decays(width: int) -> Float[Tensor, " _"]:
    """Λ for which aᶜ = exp(−c · softplus(Λ)) is uniform in (0.9, 0.999)."""
    rate = -torch.empty(width).uniform_(0.9, 0.999).log() / SHARPNESS
    return rate.expm1().log()


class _Root(torch.autograd.Function):
    """√x, whose gradient 1/(2√x) is bounded by `STEEPEST`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slope * (4 * x).clamp(min=STEEPEST**-2).rsqrt()  # type: ignore[no-any-return]


def bounded_root(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """√x, with a gradient that is finite at 0."""
    return _Root.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class BlockDiagonal(nn.Module):
    """x W + b within each head, in float32 or better; no `nn.Linear`, so that its first weights stay."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        d_head = width // n_heads
        self.weight = nn.Parameter(torch.empty(n_heads, d_head, d_head).normal_(std=d_head**-0.5))
        self.bias = nn.Parameter(torch.zeros(n_heads, d_head))

    def forward(self, x: Float[Tensor, "b t i"]) -> Float[Tensor, "b t i"]:
        """Map each head by itself."""
        heads = rearrange(x, "b t (h e) -> b t h e", h=len(self.weight))
        wide = torch.promote_types(x.dtype, torch.float32)
        mapped = torch.einsum("bthe,hef->bthf", heads, self.weight).to(wide) + self.bias.to(wide)
        return rearrange(mapped, "b t h e -> b t (h e)")


class RGLRU(nn.Module):
    """The real-gated linear recurrent unit; the module's docstring has the equations. `decay` is Λ."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.recurrence_gate = BlockDiagonal(width, n_heads)
        self.input_gate = BlockDiagonal(width, n_heads)
        self.decay = nn.Parameter(first_decays(width))

    def forward(
        self,
        x: Float[Tensor, "b t i"],
        begins: Bool[Tensor, "#b t"],
        segments: Segments,
        state: RecurrentState | None = None,
    ) -> Float[Tensor, "b t i"]:
        """Return h, in float32 or better. begins: the tokens at position 0."""
        gate = self.recurrence_gate(x).sigmoid()
        log_decay = -SHARPNESS * F.softplus(self.decay.to(gate.dtype)) * gate
        factor = bounded_root(-torch.expm1(2 * log_decay)).masked_fill(begins[:, :, None], 1.0)
        written = factor * self.input_gate(x).sigmoid() * x.to(gate.dtype)
        return run_recurrence(log_decay, written, segments, state)


class GriffinRecurrence(Layer):
    """The RG-LRU after a short convolution, times a gate, between two maps."""

    def __init__(self, d_model: int, config: RGLRUConfig) -> None:
        super().__init__()
        d_inner = config.width(d_model)
        self.gate_proj = nn.Linear(d_model, d_inner)
        self.in_proj = nn.Linear(d_model, d_inner)
        self.convolution = ShortConvolution(d_inner, config.convolution, bias=True)
        self.recurrence = RGLRU(d_inner, config.n_heads)
        self.out_proj = OutputProjection(d_inner, d_model)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Let each token choose how much of each channel's past to keep, and how much of itself to add."""
        check_causal_context(context, "Griffin's recurrence")
        segments = Segments.of(context.layout, len(x), state)
        gate = F.gelu(self.gate_proj(x), approximate="tanh")
        u = self.convolution(self.in_proj(x), segments, state)
        h = self.recurrence(u, context.layout.positions == 0, segments, state)
        return self.out_proj(gate * h.to(x.dtype))  # type: ignore[no-any-return]

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


@dataclass(frozen=True)
class RGLRUConfig(MixerConfig):
    """Griffin's recurrent block. d_inner: i; null is d_model. n_heads: blocks of the gates' maps.

    convolution: the tokens that it sees.
    """

    kind: ClassVar[str] = "rg_lru"
    causal_only: ClassVar[bool] = True
    d_inner: Size | None = None
    n_heads: Annotated[int, Ge(1)] = 8
    convolution: Annotated[int, Ge(2), Le(1024)] = 4

    def width(self, d_model: int) -> int:
        """The inner width; ValueError if it cannot be split evenly."""
        d_inner = self.d_inner or d_model
        if d_inner % self.n_heads:
            fitting = [n for n in range(1, d_inner + 1) if d_inner % n == 0]
            nearest = min(fitting, key=lambda n: abs(n - self.n_heads))
            raise ValueError(
                f"an inner width of {d_inner} cannot be split into n_heads {self.n_heads} equal blocks; "
                f"the nearest n_heads that divides it is {nearest}"
            )
        return d_inner

    def build(self, d_model: int) -> GriffinRecurrence:
        return GriffinRecurrence(d_model, self)


def real_gated_recurrence() -> Enhancement:
    """Use Griffin's recurrent block instead of softmax self-attention, but in encoders."""
    return replace_causal_attention(lambda part: RGLRUConfig(n_heads=part.n_heads))
