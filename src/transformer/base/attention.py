"""Attention (arXiv 1706.03762 §3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import KeyValueCache
from .sockets import Context, Layer, MixerConfig, OutputProjection, Pairs, Scoring


def scaled_dot_product_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s _"],
    pairs: Pairs,
    scoring: Scoring,
) -> Float[Tensor, "b h t _"]:
    """Scaled dot-product attention (§3.2.1, equation 1), written as it is defined.

        Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V

    The scale is 1/√d_k. Masked scores are −∞ before the softmax. A query that may see no key at all (a row of padding)
    gives zeros: its softmax would be 0/0. Weights may be dropped, as the paper's own do not: it drops only sub-layer
    outputs and embeddings (§5.4). Cost: O(t·s·e) operations and O(t·s) memory per head.
    """
    if scoring.soft_cap is not None or scoring.sinks is not None or q.shape[1] != k.shape[1]:
        raise ValueError(
            "the paper's attention has no soft cap, no sinks and no shared keys; "
            "run this model with Execution(naive_attention) or another kernel of enhancements.attention"
        )
    scores = torch.einsum("bhte,bhse->bhts", q, k) * scoring.scale
    if pairs.bias is not None:
        scores = scores + pairs.bias
    if pairs.visible is not None:
        sighted = pairs.visible.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~pairs.visible & sighted, -torch.inf)
        weights = torch.softmax(scores, dim=-1) * sighted
    else:
        weights = torch.softmax(scores, dim=-1)
    # a bias may be finer than the values
    weights = F.dropout(weights, scoring.dropout, training=scoring.dropout > 0).to(v.dtype)
    return torch.einsum("bhts,bhse->bhte", weights, v)


class MemoryCache:
    """The keys and values of the encoder's output, computed at the first decoding step and kept."""

    def __init__(self) -> None:
        self.kept: tuple[Float[Tensor, "b h s e"], Float[Tensor, "b h s e"]] | None = None

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order."""
        if self.kept is not None:
            self.kept = self.kept[0][rows], self.kept[1][rows]

    def truncate(self, ends: Int[Tensor, "b 1"]) -> None:
        """Forget no token: these are the encoder's."""


class MultiHeadAttention(Layer):
    """Multi-head attention (§3.2.2).

        MultiHead(Q, K, V) = Concat(head_1, …, head_h) W^O,  head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V)

    The h projections of each kind stand side by side in one matrix, d_model × d_model, since d_k = d_v = d_model / h.
    As in the paper's equations the projections have no bias, unless asked for (`bias`).
    Cost per sequence: O(t·d²) for the projections and O(t²·d) for the attention.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.0, bias: bool = False) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(
                f"d_model {d_model} cannot be split into n_heads {n_heads} equal heads; {_nearest(d_model, n_heads)}"
            )
        self.n_heads, self.dropout = n_heads, dropout
        self.scale = 1 / math.sqrt(d_model // n_heads)
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.out_proj = OutputProjection(d_model, d_model, bias=bias)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: KeyValueCache | None = None
    ) -> Float[Tensor, "b t d"]:
        """Attend from each token to those it may see in the same sequence."""
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        q, k = context.position.rotate(q, k, context.layout)
        pairs = context.pairs
        if state is not None:
            k, v, keys = state.append(k, v, context.layout)
            pairs = context.pair(keys)
        return self._attend(q, k, v, pairs, context)

    def initial_state(self) -> KeyValueCache | MemoryCache:
        return KeyValueCache()

    def _heads(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t e"]:
        return rearrange(x, "b t (h e) -> b h t e", h=self.n_heads)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, context: Context
    ) -> Float[Tensor, "b t d"]:
        dropout = self.dropout if self.training else 0.0
        mixed = context.execution.kernel(q, k, v, pairs, Scoring(self.scale, dropout))
        return self.out_proj(rearrange(mixed, "b h t e -> b t (h e)"))  # type: ignore[no-any-return]


class CrossAttention(MultiHeadAttention):
    """Encoder-decoder attention (§3.2.3): the queries are the decoder's, the keys and values the encoder's."""

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Attend from each token to those of the encoder's output that are not padding."""
        assert context.memory is not None and context.memory_pairs is not None, (
            "the context holds no encoder output"
        )
        kept = None if state is None else state.kept
        if kept is None:
            memory = context.memory.hidden
            kept = self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        if state is not None:
            state.kept = kept
        k, v = kept
        return self._attend(self._heads(self.q_proj(x)), k, v, context.memory_pairs, context)

    def initial_state(self) -> MemoryCache:
        return MemoryCache()


@dataclass(frozen=True)
class MultiHeadAttentionConfig(MixerConfig):
    """Multi-head self-attention as in §3.2.2."""

    kind: ClassVar[str] = "multi_head_attention"
    n_heads: Annotated[int, Ge(1)] = 8
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = False

    def build(self, d_model: int) -> MultiHeadAttention:
        return MultiHeadAttention(d_model, self.n_heads, self.dropout, self.bias)


@dataclass(frozen=True)
class CrossAttentionConfig(MixerConfig):
    """Attention from the decoder to the encoder's output, as in §3.2.3."""

    kind: ClassVar[str] = "cross_attention"
    n_heads: Annotated[int, Ge(1)] = 8
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = False

    def build(self, d_model: int) -> CrossAttention:
        return CrossAttention(d_model, self.n_heads, self.dropout, self.bias)


def _nearest(d_model: int, n_heads: int) -> str:
    """Name the number of heads nearest to the one asked for that divides the width."""
    fitting = [n for n in range(1, d_model + 1) if d_model % n == 0]
    return f"the nearest n_heads that divides it is {min(fitting, key=lambda n: abs(n - n_heads))}"
