"""Self-attention with relative position representations (Shaw, Uszkoreit and Vaswani 2018, arXiv 1803.02155).

    e_ij = q_i · (k_j + a^K_ij) / √e,   z_i = Σ_j softmax_j(e_ij) (v_j + a^V_ij)
    a^K_ij = w^K[clip(j − i, −c, c)],   a^V_ij = w^V[clip(j − i, −c, c)]

(equations 3 and 4; c is the paper's k, here `max_distance`). The two tables of 2c + 1 vectors of a head's width are
shared by the heads (§3.3) and belong to the layer. In a causal stack the rows for keys after the query are never used.

These terms depend on the query, so they belong to the mixer and not to `Position`. As in §3.3 no vector is made per
pair: q_i meets each of the 2c + 1 rows once, and each query's weights are summed per row before they meet w^V. The
second needs the weights themselves, so they are computed by definition, whichever kernel the execution names: O(t·s)
memory, and taps see no weights here. Cost: O(h·t·c·e) operations and O(h·t·c) memory more than plain attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

from annotated_types import Ge
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.attention import MultiHeadAttention, MultiHeadAttentionConfig
from ...base.cache import KeyValueCache
from ...base.sockets import Config, Context, Enhancement, Pairs, Scoring
from ..attention.naive import attention_weights
from .schemes import RelativeAttentionConfig, edit_stacks, with_relative_attention

C = TypeVar("C", bound=Config)


class BiasedPairs(Pairs):
    """The same pairs, with more added to their scores than the position scheme does."""

    def __init__(self, pairs: Pairs, bias: Float[Tensor, "b h t s"]) -> None:
        self.queries, self.keys, self.mask, self._pairs = pairs.queries, pairs.keys, pairs.mask, pairs
        self.bias = bias if pairs.bias is None else pairs.bias + bias

    @property
    def visible(self) -> Bool[Tensor, "#b 1 #t s"] | None:
        """The mask of the pairs as they were, made once for all layers."""
        return self._pairs.visible


class ShawAttention(MultiHeadAttention):
    """Multi-head self-attention with a learned vector per clipped distance, for the keys and for the values."""

    def __init__(
        self, d_model: int, n_heads: int, max_distance: int = 16, dropout: float = 0.0, bias: bool = False
    ) -> None:
        super().__init__(d_model, n_heads, dropout, bias)
        self.max_distance = max_distance
        self.key_table = nn.Embedding(2 * max_distance + 1, d_model // n_heads)
        self.value_table = nn.Embedding(2 * max_distance + 1, d_model // n_heads)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, context: Context
    ) -> Float[Tensor, "b t d"]:
        rows = repeat(self.rows(pairs), "b t s -> b h t s", h=self.n_heads).expand(len(q), -1, -1, -1)
        scores = (q @ self.key_table.weight.mT * self.scale).gather(-1, rows)
        weights = attention_weights(q, k, BiasedPairs(pairs, scores), Scoring(self.scale)).to(v.dtype)
        weights = F.dropout(weights, self.dropout, self.training)
        by_row = weights.new_zeros(*weights.shape[:3], 2 * self.max_distance + 1)
        mixed = weights @ v + by_row.scatter_add(-1, rows, weights) @ self.value_table.weight
        return self.out_proj(rearrange(mixed, "b h t e -> b t (h e)"))  # type: ignore[no-any-return]

    def rows(self, pairs: Pairs) -> Int[Tensor, "#b t s"]:
        """The row of the tables for each query and key: clip(j − i, −c, c) + c."""
        relative = pairs.keys.positions[:, None, :] - pairs.queries.positions[:, :, None]
        return relative.clamp(-self.max_distance, self.max_distance) + self.max_distance

    def initial_state(self) -> KeyValueCache:
        return KeyValueCache()


@dataclass(frozen=True)
class ShawAttentionConfig(RelativeAttentionConfig):
    """Self-attention with relative position representations; max_distance: beyond it all distances are one."""

    kind: ClassVar[str] = "shaw_attention"
    max_distance: Annotated[int, Ge(1)] = 16

    def build(self, d_model: int) -> ShawAttention:
        return ShawAttention(d_model, self.n_heads, self.max_distance, self.dropout, self.bias)


def shaw(max_distance: int = 16) -> Enhancement:
    """Give every multi-head self-attention relative position representations, and no stack another scheme."""

    def relative(part: MultiHeadAttentionConfig) -> ShawAttentionConfig:
        return ShawAttentionConfig(part.n_heads, part.dropout, part.bias, max_distance)

    def apply(config: C) -> C:
        return edit_stacks(config, lambda stack: with_relative_attention(stack, relative))

    return apply
