"""Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): the delta rule with a decay that empties the state.

    S_t = α_t (I − β_t k_tᵀ k_t) S_{t−1} + β_t k_tᵀ v_t,   o_t = q_t S_t                               (equation 10)
    α_t = exp(−exp(A) · softplus(x_t W_α + δ)),   β_t = σ(x_t W_β)      for each head, A and δ learned, as in Mamba-2
    y_t = (RMSNorm(o_t) ⊙ SiLU(x_t W_G)) W_O,  the norm over each head                                 (figure 1)

(S is keys by values, the transpose of the paper's.) The rule replaces one value at a time; the decay forgets all of
them at once. Queries, keys and values pass a short convolution and SiLU, queries and keys are divided by their length.
Keys are ¾·d and values 3/2·d wide in all, so a layer has about 6d² weights. A and δ start as in Mamba-2: exp(A) uniform
in (1, 16), and a step softplus(δ) whose logarithm is uniform in (log 0.001, log 0.1). They are no weights of a linear
map, so initializations leave them and no weight decay pulls at them. `delta_net.py` has the scan. Order needs no
scheme; one that rotates is left to the other mixers of the stack. Cost: as DeltaNet's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Context, Enhancement, Layer, MixerConfig, OutputProjection
from ..normalization.rms_norm import RMSNorm
from .delta_net import delta_scan, unit
from .recurrence import RecurrentState, Segments, check_causal_context
from .replacement import replace_causal_attention
from .short_convolution import ShortConvolution


class GatedDeltaNet(Layer):
    """Multi-head attention by the gated delta rule. A head's keys are `d_head` wide, its values twice that."""

    def __init__(self, d_model: int, n_heads: int, d_head: int, convolution: int = 4) -> None:
        super().__init__()
        d_key, d_value = n_heads * d_head, 2 * n_heads * d_head
        self.n_heads, self.widths = n_heads, (d_key, d_key, d_value)
        self.q_proj = nn.Linear(d_model, d_key, bias=False)
        self.k_proj = nn.Linear(d_model, d_key, bias=False)
        self.v_proj = nn.Linear(d_model, d_value, bias=False)
        self.beta_proj = nn.Linear(d_model, n_heads, bias=False)
        self.decay_proj = nn.Linear(d_model, n_heads, bias=False)
        self.gate_proj = nn.Linear(d_model, d_value, bias=False)
        self.convolution = ShortConvolution(sum(self.widths), convolution)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        step = torch.empty(n_heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step.expm1().log())  # softplus⁻¹(step)
        self.norm = RMSNorm(2 * d_head)
        self.out_proj = OutputProjection(d_value, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Read the state in which tokens have replaced values, and which they have let fade."""
        check_causal_context(context, "Gated DeltaNet")
        segments = Segments.of(context.layout, len(x), state)
        projected = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)
        mixed = F.silu(self.convolution(projected, segments, state))
        parts = torch.split(mixed, list(self.widths), dim=-1)
        q, k, v = (rearrange(y, "b t (h e) -> b h t e", h=self.n_heads) for y in parts)
        beta = rearrange(self.beta_proj(x).sigmoid(), "b t h -> b h t 1")
        out = delta_scan(unit(q), unit(k), v, self.log_decay(x), beta, segments, state)
        normed = rearrange(self.norm(out), "b h t e -> b t (h e)")
        return self.out_proj(normed * F.silu(self.gate_proj(x)))  # type: ignore[no-any-return]

    def log_decay(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t 1"]:
        """log α, in float32 or better."""
        wide = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(self.decay_proj(x).to(wide) + self.dt_bias.to(wide))
        return rearrange(-self.A_log.to(wide).exp() * step, "b t h -> b h t 1")

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


@dataclass(frozen=True)
class GatedDeltaNetConfig(MixerConfig):
    """Gated DeltaNet. d_head: width of a head's keys; null is ¾·d_model/n_heads, rounded down."""

    kind: ClassVar[str] = "gated_delta_net"
    causal_only: ClassVar[bool] = True
    n_heads: Annotated[int, Ge(1)] = 8
    d_head: Annotated[int, Ge(1)] | None = None
    convolution: Annotated[int, Ge(2)] = 4

    def build(self, d_model: int) -> GatedDeltaNet:
        d_head = self.d_head or max(1, 3 * d_model // (4 * self.n_heads))
        return GatedDeltaNet(d_model, self.n_heads, d_head, self.convolution)


def gated_delta_net() -> Enhancement:
    """Use Gated DeltaNet instead of softmax self-attention, but in encoders."""
    return replace_causal_attention(lambda part: GatedDeltaNetConfig(part.n_heads))
