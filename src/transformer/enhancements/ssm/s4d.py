"""S4D (Gu et al. 2022, arXiv 2206.11893): a diagonal state-space model for each channel, blind to the token.

    dS/dτ = A S + B x(τ),  y = Re(2 C S) + D x                                              (equation 1, A diagonal)
    S_t = Ā S_{t−1} + B̄ x_t,  y_t = Re Σ_{s≤t} 2 C Ā^{t−s} B̄ x_s + D x_t                    (equations 2 and 3)
    Ā = exp(Δ A), B̄ = (Ā − 1) A⁻¹ B                                  zero-order hold
    Ā = (1 + Δ A/2) / (1 − Δ A/2), B̄ = Δ B / (1 − Δ A/2)            bilinear
    A_n = −½ + i π n                                                  S4D-Lin, equation 9
    A_n = −½ + i (N/π) (N/(2n + 1) − 1)                               S4D-Inv, equation 8

A channel has N real states, held as N/2 complex numbers; the other half are their conjugates, hence Re and the 2.
Δ, A, C and D are learned, Δ for each channel; B is 1, since only B C counts. Re A = −exp(·) stays negative (§3.4). Then
GELU and a gated linear map (GLU) mix the channels, as in S4's own block.

The recurrence decodes; training convolves, by chunks with exact causality, or by Fourier transforms as in the paper
(`invariant.py`). Rows with padding inside or before them, and packed documents, take the associative form. Nothing
depends on the token, so it cannot choose what to keep: Mamba's subject. Cost: O(t·(C + N)·d) beside the maps of the
channels, and a state of N·d numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Context, Enhancement, Layer, MixerConfig, OutputProjection
from ..attention.recurrence import RecurrentState, Segments, check_causal_context
from ..attention.replacement import replace_causal_attention
from .forms import run_scan

Spectrum = Literal["lin", "inv"]
Discretization = Literal["zoh", "bilinear"]
Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def zero_order_hold(
    step: Float[Tensor, "i 1"], A: Complex[Tensor, "i n"]
) -> tuple[Complex[Tensor, "i n"], Complex[Tensor, "i n"]]:
    """log Ā and B̄ for B = 1, the input held during a step."""
    return step * A, torch.expm1(step * A) / A


def bilinear(
    step: Float[Tensor, "i 1"], A: Complex[Tensor, "i n"]
) -> tuple[Complex[Tensor, "i n"], Complex[Tensor, "i n"]]:
    """log Ā and B̄ for B = 1, by the trapezoidal rule."""
    half = step * A / 2
    return torch.log((1 + half) / (1 - half)), step / (1 - half)


RULES: Mapping[Discretization, Rule] = MappingProxyType({"zoh": zero_order_hold, "bilinear": bilinear})


def frequencies(spectrum: Spectrum, n_states: int) -> Float[Tensor, " n"]:
    """Im A of the N/2 states that are held: at even distances, or as the inverse of an odd number."""
    n = torch.arange(n_states // 2, dtype=torch.float32)
    return math.pi * n if spectrum == "lin" else n_states / math.pi * (n_states / (2 * n + 1) - 1)


class S4D(Layer):
    """A diagonal state-space model for each channel, and a gated map across them."""

    def __init__(self, d_model: int, d_state: int, spectrum: Spectrum, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        step = torch.empty(d_model).uniform_(math.log(0.001), math.log(0.1))
        self.log_step = nn.Parameter(step)
        self.A_log = nn.Parameter(torch.full((d_model, d_state // 2), 0.5).log())
        self.A_imag = nn.Parameter(frequencies(spectrum, d_state).repeat(d_model, 1))
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.gate_proj = nn.Linear(d_model, d_model)
        self.out_proj = OutputProjection(d_model, d_model)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Convolve each channel with the past, then mix the channels."""
        check_causal_context(context, "S4D")
        segments = Segments.of(context.layout, len(x), state)
        log_decay, B, C = self.discretized()
        dt = torch.ones(1, 1, 1, dtype=log_decay.real.dtype, device=x.device)
        read = run_scan(x[..., None], dt, log_decay, B[None, None], C[None, None], segments, state, context)
        y = F.gelu((read[..., 0] + self.D * x).to(x.dtype))
        return self.out_proj(y) * self.gate_proj(y).sigmoid()  # type: ignore[no-any-return]

    def discretized(self) -> tuple[Complex[Tensor, "i n"], Complex[Tensor, "i n"], Complex[Tensor, "i n"]]:
        """log Ā, B̄ and 2 C, in float32 or better: a step of 0.001 is lost beside 1 in bfloat16."""
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        with torch.autocast(self.A_log.device.type, enabled=False):
            A = torch.complex(-self.A_log.to(wide).exp(), self.A_imag.to(wide))
            log_decay, B = self.rule(self.log_step.to(wide).exp()[:, None], A)
            return log_decay, B, 2 * torch.view_as_complex(self.C.to(wide).contiguous())

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


@dataclass(frozen=True)
class S4DConfig(MixerConfig):
    """S4D. d_state: N, the real states of a channel, an even number; spectrum: the first A; discretization: of time."""

    kind: ClassVar[str] = "s4d"
    causal_only: ClassVar[bool] = True
    d_state: Annotated[int, Ge(2), Le(2**16)] = 64
    spectrum: Spectrum = "lin"
    discretization: Discretization = "zoh"

    def __post_init__(self) -> None:
        if self.d_state % 2:
            raise ValueError(
                f"d_state {self.d_state} is odd, and states come in conjugate pairs; take {self.d_state + 1}"
            )

    def build(self, d_model: int) -> S4D:
        return S4D(d_model, self.d_state, self.spectrum, RULES[self.discretization])


def s4d(d_state: int = 64, spectrum: Spectrum = "lin") -> Enhancement:
    """Use S4D instead of softmax self-attention, but in encoders."""
    return replace_causal_attention(lambda part: S4DConfig(d_state, spectrum))
