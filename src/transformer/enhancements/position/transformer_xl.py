"""Transformer-XL's attention (Dai et al. 2019, arXiv 1901.02860 §3.2 and §3.3): relative sinusoids, kept segments.

    score(i, j) = ((q_i + u) · k_j + (q_i + v) · W_{k,R} R_{i−j}) / √e

R_n is the sinusoid of the distance n, u and v a learned vector for each head: what is looked for wherever it stands,
and how far back one looks whatever stands there. The state kept from one segment to the next is the memory of §3.2: no
gradient passes into it. Nothing is added to the embeddings.

Distances are not read off a table that is shifted into place (the trick of the paper's appendix B, which is easily
got wrong and needs columns that stand in a row). The sinusoid of a difference is made of products of sinusoids,

    sin ω(i−j) = sin ωi cos ωj − cos ωi sin ωj,   cos ω(i−j) = cos ωi cos ωj + sin ωi sin ωj,

so (q_i + v) · W_{k,R} R_{i−j} = turn_i((q_i + v) W_{k,R}) · R_j, the product of a vector of the query's and one of the
key's. Side by side with q_i + u and k_j they are the queries and keys of plain attention, for any kernel, right for
any positions: padding, packing, caches, both directions.

How this differs from the paper: u and v belong to the layer, as W_{k,R} does (the paper shares them by all layers).
The memory holds keys and values instead of the hidden states that they are made of: the same numbers as long as the
weights stay, but W^K and W^V get no gradient through remembered tokens. The memory may be bounded by `window`: then
each token sees those fewer than `window` positions away and no others, in training too, so that segments of any
length give the same as the whole sequence. Sines and cosines alternate in R, as in 1706.03762; the authors' code puts
them in halves, another order of the columns of W_{k,R}.

Cost: queries and keys are wider by d_model, so the scores take h + 1 times the operations of plain attention's, and
the keys O(h·s·d) memory while the layer runs; the weighing of values is as ever. Appendix B's is cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Ge
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.attention import MultiHeadAttention, MultiHeadAttentionConfig
from ...base.cache import KeyValueCache, PreallocatedCache, RingCache, Storage
from ...base.sockets import Config, Context, Enhancement, Layout, Pairs
from .rope_scaling import rotary_frequencies
from .schemes import RelativeAttentionConfig, edit_stacks, with_relative_attention

C = TypeVar("C", bound=Config)


class SegmentMemory(KeyValueCache):
    """The keys and values of earlier segments, without their gradients: the last `window` − 1 tokens of each row."""

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window

    def append(
        self, k: Float[Tensor, "b h t e"], v: Float[Tensor, "b h t e"], layout: Layout
    ) -> tuple[Float[Tensor, "b h s e"], Float[Tensor, "b h s e"], Layout]:
        """Add this call's tokens and return all of them; keep what the next call's tokens may see."""
        k, v, layout = super().append(k, v, layout)
        self.keys, self.values = k.detach(), v.detach()
        if self.window is not None and k.shape[2] >= self.window:
            self._keep(_last(layout, len(k), k.shape[2], self.window - 1))
        return k, v, layout

    def prepared(self, storage: Storage) -> KeyValueCache:
        """The empty cache that keeps the same, as `storage` says."""
        if self.window is None:
            return self if storage.capacity is None else PreallocatedCache(storage.capacity)
        kept = self.window + storage.rollback
        return SegmentMemory(kept) if storage.capacity is None else RingCache(kept)

    def _keep(self, index: Int[Tensor, "b s"]) -> None:
        assert self.keys is not None and self.values is not None and self.layout is not None
        self.layout = self.layout.select(index)
        rows = repeat(index, "b s -> b h s e", h=self.keys.shape[1], e=self.keys.shape[3])
        self.keys, self.values = self.keys.gather(2, rows), self.values.gather(2, rows)


def _last(layout: Layout, batch: int, length: int, kept: int) -> Int[Tensor, "b s"]:
    """The columns of each row's last `kept` real tokens, in order; padding only where a row has fewer."""
    order = torch.arange(length, device=layout.positions.device).expand(batch, -1)
    if layout.real is not None:
        order = layout.real.long().argsort(dim=1, stable=True)
    return order[:, length - kept :]


class TransformerXLAttention(MultiHeadAttention):
    """Multi-head self-attention by content and by the sinusoid of the distance."""

    def __init__(
        self, d_model: int, n_heads: int, window: int | None = None, dropout: float = 0.0, bias: bool = False
    ) -> None:
        super().__init__(d_model, n_heads, dropout, bias)
        self.window = window
        self.position_proj = nn.Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(0.02 * torch.randn(n_heads, d_model // n_heads))
        self.position_bias = nn.Parameter(0.02 * torch.randn(n_heads, d_model // n_heads))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, context: Context
    ) -> Float[Tensor, "b t d"]:
        asked = self.by_distance(q + self.position_bias[:, None], pairs.queries)
        sought = rearrange(
            torch.stack(self.circle(pairs.keys, q.dtype), dim=-1), "b 1 s p two -> b 1 s (p two)"
        )
        q = torch.cat([q + self.content_bias[:, None], asked], dim=-1)
        k = torch.cat([k, sought.expand(*k.shape[:3], -1)], dim=-1)
        if self.window is not None:
            pairs = context.pair(pairs.keys, replace(context.mask, window=self.window))
        return super()._attend(q, k, v, pairs, context)

    def by_distance(self, q: Float[Tensor, "b h t e"], queries: Layout) -> Float[Tensor, "b h t _"]:
        """The vector whose product with R_j, sines and cosines of j in turn, is q · W_{k,R} R_{i−j}."""
        # not einops: it notes the type of what it sees first, which a compiler refuses in a checkpointed block
        weight = self.position_proj.weight.view(self.n_heads, q.shape[-1], -1)
        by_sinusoid = torch.einsum("bhte,hed->bhtd", q, weight)
        by_sinusoid = F.pad(by_sinusoid, (0, by_sinusoid.shape[-1] % 2))  # an odd width ends in a sine
        of_sine, of_cosine = by_sinusoid[..., ::2], by_sinusoid[..., 1::2]
        sin, cos = self.circle(queries, q.dtype)
        turned = torch.stack([of_cosine * sin - of_sine * cos, of_sine * sin + of_cosine * cos], dim=-1)
        return rearrange(turned, "b h t p two -> b h t (p two)")

    def circle(
        self, layout: Layout, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b 1 t p"], Float[Tensor, "b 1 t p"]]:
        """Sine and cosine of each position at each frequency of R, from float64 angles."""
        theta = rotary_frequencies(self.position_proj.in_features, 10000.0, layout.positions.device)
        angles = rearrange(layout.positions, "b t -> b 1 t 1") * theta
        return angles.sin().to(dtype), angles.cos().to(dtype)

    def initial_state(self) -> SegmentMemory:
        return SegmentMemory(self.window)


@dataclass(frozen=True)
class TransformerXLAttentionConfig(RelativeAttentionConfig):
    """Transformer-XL's self-attention; window: tokens that far away, and farther, are not seen; null is no bound."""

    kind: ClassVar[str] = "transformer_xl_attention"
    window: Annotated[int, Ge(1)] | None = None

    def build(self, d_model: int) -> TransformerXLAttention:
        return TransformerXLAttention(d_model, self.n_heads, self.window, self.dropout, self.bias)


def transformer_xl(window: int | None = None) -> Enhancement:
    """Use Transformer-XL's attention for every multi-head self-attention, and no other position scheme."""

    def relative(part: MultiHeadAttentionConfig) -> TransformerXLAttentionConfig:
        return TransformerXLAttentionConfig(part.n_heads, part.dropout, part.bias, window)

    def apply(config: C) -> C:
        return edit_stacks(config, lambda stack: with_relative_attention(stack, relative))

    return apply
