"""Differential attention (Ye et al. 2024, arXiv 2410.05258 §2.1).

    head_i = (1 − λ₀) · RMSNorm((softmax(q₁ k₁ᵀ/√e) − λ · softmax(q₂ k₂ᵀ/√e)) v)
    λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ₀,   λ₀ = 0.8 − 0.6 exp(−0.3 (l − 1)) in layer l = 1, 2, …

The difference of two attention maps cancels what both give to irrelevant tokens, as a differential amplifier cancels
noise. A head has two queries and two keys of width e and one value of width 2e, so that with half as many heads the
parameters are those of multi-head attention, up to the 4·e numbers of λ and the gains of the norm. Each head's output
is normalized by itself, with one gain for all heads, and scaled by 1 − λ₀, so that its gradients are about those of
an ordinary head.

Both maps are computed by one call of the kernel, with twice the heads. Cost: that of multi-head attention with values
of twice the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Ge, Lt
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from ...base.attention import MultiHeadAttentionConfig
from ...base.cache import KeyValueCache
from ...base.sockets import Config, Context, Enhancement, Layer, MixerConfig, OutputProjection, Scoring
from ...base.stack import StackConfig
from ..compose import replace_parts
from ..normalization.rms_norm import RMSNorm
from .grouped_query import GroupedQueryAttentionConfig

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class DifferentialAttentionConfig(MixerConfig):
    """Self-attention by the difference of two maps. lambda_init: the λ₀ of this layer."""

    kind: ClassVar[str] = "differential_attention"
    n_heads: Annotated[int, Ge(1)] = 4
    lambda_init: Annotated[float, Ge(0), Lt(1)] = 0.2
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = False

    def build(self, d_model: int) -> DifferentialAttention:
        return DifferentialAttention(d_model, self)


class DifferentialAttention(Layer):
    """Self-attention whose heads subtract one attention map from another."""

    def __init__(self, d_model: int, config: DifferentialAttentionConfig) -> None:
        super().__init__()
        if d_model % (2 * config.n_heads):
            fitting = [n for n in range(1, d_model // 2 + 1) if d_model % (2 * n) == 0] or [1]
            near = min(fitting, key=lambda n: abs(n - config.n_heads))
            raise ValueError(
                f"d_model {d_model} cannot be split into n_heads {config.n_heads} pairs of equal heads; "
                f"the nearest n_heads for which it can is {near}"
            )
        d_head = d_model // (2 * config.n_heads)
        self.n_heads, self.dropout, self.lambda_init = config.n_heads, config.dropout, config.lambda_init
        self.scale = d_head**-0.5
        self.q_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.out_proj = OutputProjection(d_model, d_model, bias=config.bias)
        self.lambda_q = nn.Parameter(0.1 * torch.randn(2, d_head))
        self.lambda_k = nn.Parameter(0.1 * torch.randn(2, d_head))
        self.norm = RMSNorm(2 * d_head, epsilon=1e-5)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: KeyValueCache | None = None
    ) -> Float[Tensor, "b t d"]:
        """Attend from each token to those it may see in the same sequence."""
        q = rearrange(self.q_proj(x), "b t (h e) -> b h t e", h=2 * self.n_heads)
        k = rearrange(self.k_proj(x), "b t (h e) -> b h t e", h=2 * self.n_heads)
        v = rearrange(self.v_proj(x), "b t (h e) -> b h t e", h=self.n_heads)
        q, k = context.position.rotate(q, k, context.layout)
        pairs = context.pairs
        if state is not None:
            k, v, keys = state.append(k, v, context.layout)
            pairs = context.pair(keys)
        scoring = Scoring(self.scale, self.dropout if self.training else 0.0)
        both = context.execution.kernel(q, k, repeat(v, "b h s e -> b (h 2) s e"), pairs, scoring)
        first, second = rearrange(both, "b (h m) t e -> m b h t e", m=2)
        mixed = (1 - self.lambda_init) * self.norm(first - self.strength().to(first.dtype) * second)
        return self.out_proj(rearrange(mixed, "b h t e -> b t (h e)"))  # type: ignore[no-any-return]

    def strength(self) -> Float[Tensor, ""]:
        """λ: how much of the second map is subtracted."""
        first, second = (self.lambda_q * self.lambda_k).sum(-1).exp()
        return first - second + self.lambda_init  # type: ignore[no-any-return]

    def initial_state(self) -> KeyValueCache:
        return KeyValueCache()


def differential() -> Enhancement:
    """Replace every self-attention by a differential one with half as many heads, λ₀ following its layer."""

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, _by_layer)

    return apply


def _by_layer(stack: StackConfig) -> StackConfig:
    blocks = []
    for layer, block in enumerate(stack.blocks):
        start = 0.8 - 0.6 * math.exp(-0.3 * layer)

        def change(
            part: MultiHeadAttentionConfig | GroupedQueryAttentionConfig, start: float = start
        ) -> DifferentialAttentionConfig:
            return DifferentialAttentionConfig(max(1, part.n_heads // 2), start, part.dropout, part.bias)

        changed = replace_parts(block, MultiHeadAttentionConfig, change)
        blocks.append(replace_parts(changed, GroupedQueryAttentionConfig, change))
    return replace(stack, blocks=tuple(blocks))
