"""Retention (RetNet: Sun et al. 2023, arXiv 2307.08621): linear attention with a fixed decay for each head.

    S_n = γ S_{n−1} + k_nᵀ v_n,   o_n = q_n S_n                                                  (equation 6, recurrent)
    o_n = Σ_{m≤n} γ^{n−m} (q_n·k_m) v_m                                                          (equation 5, parallel)
    γ_i = 1 − 2^{−5−i},  i = 0 … h − 1                                                           (equation 8)
    Retention(X) = (swish(X W_G) ⊙ Concat_i GroupNorm(head_i)) W_O

The paper's queries and keys are rotated, q_n e^{inθ} and k_m e^{−imθ}: here the stack's position scheme does it, so the
paper's model is `enhance(model, rope(), retention())` (or xPos). Values are `value_expansion` = 2 times as wide as
keys, so a layer has 8d² weights; the paper makes the feed-forward half as wide for it. The norm works on each head of
each token by itself, with no gain: nn.GroupNorm over (batch, channels, time) would average over later tokens too. As
it is blind to scale, the paper's extra divisions, which are for float16, are left out; keys are scaled by 1/√e.
Time is counted in real tokens. Cost per sequence: O(t·(C + e)·d) beside the projections, in chunks of C tokens.
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

from ...base.sockets import Context, Enhancement, Layer, MixerConfig, OutputProjection
from .recurrence import RecurrentState, Segments, check_causal_context, scan
from .replacement import head_width, replace_causal_attention


def log_decays(n_heads: int) -> Float[Tensor, "1 h 1 1"]:
    """log γ of each head, in float64."""
    return torch.log1p(-(2.0 ** (-5 - torch.arange(n_heads, dtype=torch.float64))))[None, :, None, None]


class Retention(Layer):
    """Multi-scale retention."""

    log_decay: Tensor

    def __init__(self, d_model: int, n_heads: int, value_expansion: int = 2, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.n_heads, self.epsilon = n_heads, epsilon
        self.scale = head_width(d_model, n_heads) ** -0.5
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, value_expansion * d_model, bias=False)
        self.gate_proj = nn.Linear(d_model, value_expansion * d_model, bias=False)
        self.out_proj = OutputProjection(value_expansion * d_model, d_model, bias=False)
        self.register_buffer("log_decay", log_decays(n_heads), persistent=False)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Read the state that the tokens so far have written, each faded by its distance."""
        check_causal_context(context, "retention")
        segments = Segments.of(context.layout, len(x), state)
        projected = (self.q_proj(x), self.k_proj(x) * self.scale, self.v_proj(x))
        q, k, v = (rearrange(y, "b t (h e) -> b h t e", h=self.n_heads) for y in projected)
        q, k = context.position.rotate(q, k, context.layout)
        mixed = scan(q, k, v, self.log_decay.expand(-1, -1, q.shape[2], -1), segments, state)
        normed = F.layer_norm(mixed, mixed.shape[-1:], eps=self.epsilon)
        gated = F.silu(self.gate_proj(x)) * rearrange(normed, "b h t e -> b t (h e)")
        return self.out_proj(gated)  # type: ignore[no-any-return]

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


@dataclass(frozen=True)
class RetentionConfig(MixerConfig):
    """Multi-scale retention. value_expansion: the width of values over that of keys. epsilon: of the norm."""

    kind: ClassVar[str] = "retention"
    causal_only: ClassVar[bool] = True
    n_heads: Annotated[int, Ge(1)] = 8
    value_expansion: Annotated[int, Ge(1)] = 2
    epsilon: Annotated[float, Gt(0)] = 1e-5

    def build(self, d_model: int) -> Retention:
        return Retention(d_model, self.n_heads, self.value_expansion, self.epsilon)


def retention(value_expansion: int = 2) -> Enhancement:
    """Use retention instead of softmax self-attention, but in encoders."""
    return replace_causal_attention(lambda part: RetentionConfig(part.n_heads, value_expansion))
