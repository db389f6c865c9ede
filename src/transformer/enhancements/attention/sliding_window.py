"""Sliding-window attention (Longformer, arXiv 2004.05150 §3.1; causal, as in Mistral 7B, arXiv 2310.06825 §2.1).

A token sees the keys fewer than `window` positions away: itself and the window − 1 before it, and in an encoder as
many after it. Stacked layers see further: information moves up to window − 1 positions a layer.

Distances are between positions, so caches, padding and packed documents need no special case. While decoding, only
keys that a later token can still see are kept: window − 1 of them. Cost: O(t·w) in kernels that skip what is masked,
and a cache of constant size. Gemma 2 (arXiv 2408.00118) makes every second layer local, Gemma 3 five of six.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from ...base.cache import KeyValueCache, RingCache, Storage
from ...base.sockets import Config, Context, Enhancement, Layout, Pairs
from ...base.stack import StackConfig
from ..compose import replace_parts
from .grouped_query import GroupedQueryAttention, GroupedQueryAttentionConfig, change_attention

C = TypeVar("C", bound=Config)


class WindowCache(KeyValueCache):
    """A key-value cache that forgets what no later token can see."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def append(
        self, k: Float[Tensor, "b k t e"], v: Float[Tensor, "b _ t _"], layout: Layout
    ) -> tuple[Float[Tensor, "b k s e"], Float[Tensor, "b _ s _"], Layout]:
        """Add this call's tokens, return all that these may need, and keep what the next may."""
        k, v, layout = super().append(k, v, layout)
        first = self._first_needed(layout)
        if first:
            self.keys, self.values = k[:, :, first:], v[:, :, first:]
            self.layout = Layout(
                layout.positions[:, first:],
                None if layout.real is None else layout.real[:, first:],
                None if layout.documents is None else layout.documents[:, first:],
            )
        return k, v, layout

    def prepared(self, storage: Storage) -> KeyValueCache:
        """The empty cache that keeps the same, as `storage` says; a ring needs no more memory than the window."""
        kept = self.window + storage.rollback
        return WindowCache(kept) if storage.capacity is None else RingCache(kept)

    def _first_needed(self, layout: Layout) -> int:
        """The first token that some row's next token will see; with no padding that is a matter of counting."""
        length = layout.positions.shape[1]
        if layout.real is None:
            return max(0, length - (self.window - 1))
        last = layout.positions.masked_fill(~layout.real, -1).amax(dim=1, keepdim=True)
        needed = (layout.real & (layout.positions > last + 1 - self.window)).any(dim=0)
        return int(torch.cat([needed, needed.new_ones(1)]).long().argmax())


class SlidingWindowAttention(GroupedQueryAttention):
    """Attention to the keys fewer than `window` positions away."""

    def __init__(self, d_model: int, config: SlidingWindowAttentionConfig) -> None:
        super().__init__(d_model, config)
        self.window = config.window

    def pairs(self, context: Context, keys: Layout) -> Pairs:
        """This call's tokens with `keys`, under the stack's mask and the window."""
        return context.pair(keys, replace(context.mask, window=self.window))

    def initial_state(self) -> WindowCache:
        return WindowCache(self.window)


@dataclass(frozen=True)
class SlidingWindowAttentionConfig(GroupedQueryAttentionConfig):
    """Self-attention to the keys fewer than `window` positions away."""

    kind: ClassVar[str] = "sliding_window_attention"
    window: Annotated[int, Ge(1)] = 256

    def build(self, d_model: int) -> SlidingWindowAttention:
        return SlidingWindowAttention(d_model, self)


def sliding_window(window: int = 256, every: int = 1, keep: int | None = None) -> Enhancement:
    """Make self-attention local: in all layers, or in those of each `every` layers that are not the `keep`-th (from 0).

    `sliding_window(4096)` is Mistral's; `sliding_window(4096, every=2)` Gemma 2's, every second layer staying global;
    `sliding_window(1024, every=6)` Gemma 3's. `keep` is the last of each `every` unless given.
    """
    if every < 1:
        raise ValueError(f"every counts layers, from 1 on, got {every}; 1 makes all of them local")

    def local(part: GroupedQueryAttentionConfig) -> SlidingWindowAttentionConfig:
        settings = {entry.name: getattr(part, entry.name) for entry in fields(GroupedQueryAttentionConfig)}
        return SlidingWindowAttentionConfig(**settings, window=window)

    def narrow(stack: StackConfig) -> StackConfig:
        kept = every - 1 if keep is None else keep
        blocks = [
            block if every > 1 and index % every == kept else change_attention(local)(block)
            for index, block in enumerate(stack.blocks)
        ]
        return replace(stack, blocks=tuple(blocks))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, narrow)

    return apply
