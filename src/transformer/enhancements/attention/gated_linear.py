"""Gated linear attention (GLA: Yang et al. 2023, arXiv 2312.06635): each entry of a key decays as the token says.

    S_t = diag(α_t) S_{t−1} + k_tᵀ v_t,   o_t = q_t S_t                                               (equation 3)
    α_t = σ(x_t W¹ W² + b)^{1/τ},  W¹: d × 16,  τ = 16                                                (§4.4)
    y_t = (swish(x_t W_r + b_r) ⊙ LayerNorm(o_t)) W_O,  the norm over each head

Queries and keys are half as wide as values (d/2 and d in all), so a layer has about 4d² weights. τ keeps decays near 1:
at a gate of ½ a state loses 4 % a token. What is far cannot be told from what has decayed, so order needs no scheme:
one that rotates is left to the other mixers of the stack. Products of decays are taken as exponents of sums in log
space, split so that each is at most 1 (`recurrence.pair_scores`); the paper's secondary chunks serve the same end.
Cost per sequence: O(t·(C + e)·d) beside the projections, in chunks of C tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.normalization import LayerNorm
from ...base.sockets import Context, Enhancement, Layer, MixerConfig, OutputProjection, Size
from .recurrence import RecurrentState, Segments, check_causal_context, scan
from .replacement import head_width, replace_causal_attention


class GatedLinearAttention(Layer):
    """Multi-head gated linear attention."""

    def __init__(self, d_model: int, n_heads: int, gate_rank: int = 16, temperature: float = 16.0) -> None:
        super().__init__()
        d_value = head_width(d_model, n_heads)
        d_key = n_heads * max(1, d_value // 2)
        self.n_heads, self.temperature = n_heads, temperature
        self.q_proj = nn.Linear(d_model, d_key, bias=False)
        self.k_proj = nn.Linear(d_model, d_key, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.decay_proj = nn.Sequential(
            nn.Linear(d_model, gate_rank, bias=False), nn.Linear(gate_rank, d_key)
        )
        self.gate_proj = nn.Linear(d_model, d_model)
        self.norm = LayerNorm(d_value)
        self.out_proj = OutputProjection(d_model, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Read the state that the tokens so far have written and let fade."""
        check_causal_context(context, "gated linear attention")
        segments = Segments.of(context.layout, len(x), state)
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x), self.log_decay(x))
        q, k, v, log_decay = (rearrange(y, "b t (h e) -> b h t e", h=self.n_heads) for y in projected)
        mixed = self.norm(scan(q, k, v, log_decay, segments, state))
        return self.out_proj(F.silu(self.gate_proj(x)) * rearrange(mixed, "b h t e -> b t (h e)"))  # type: ignore[no-any-return]

    def log_decay(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t _"]:
        """log α, in float32 or better: 1 − α is often below what bfloat16 can tell from 0."""
        gate = self.decay_proj(x)
        return F.logsigmoid(gate.to(torch.promote_types(gate.dtype, torch.float32))) / self.temperature

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


@dataclass(frozen=True)
class GatedLinearAttentionConfig(MixerConfig):
    """Gated linear attention. gate_rank: of the map to the decays. temperature: τ, of their gate."""

    kind: ClassVar[str] = "gated_linear_attention"
    causal_only: ClassVar[bool] = True
    n_heads: Annotated[int, Ge(1)] = 4
    gate_rank: Size = 16
    temperature: Annotated[float, Gt(0)] = 16.0

    def build(self, d_model: int) -> GatedLinearAttention:
        return GatedLinearAttention(d_model, self.n_heads, self.gate_rank, self.temperature)


def gated_linear_attention() -> Enhancement:
    """Use gated linear attention instead of softmax self-attention, but in encoders; with as many heads."""
    return replace_causal_attention(lambda part: GatedLinearAttentionConfig(part.n_heads))
