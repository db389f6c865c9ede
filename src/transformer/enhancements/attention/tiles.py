"""What attention kernels that work tile by tile share: which tiles there are, and the scores of one.

A tile is some of the queries with some of the keys. Most of what a mask empties is seen from the smallest and the
largest position of each side, so those tiles are never computed: half of them under a causal mask, all but O(t·w)
under a window. The bounds are looked up for one block of queries at a time: O(s) memory, never O(t·s).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...base.sockets import Layout, Mask, Pairs, Scoring


@dataclass(frozen=True)
class Tile:
    """A block of queries with a block of keys. whole: every query of it sees every key of it."""

    queries: slice
    keys: slice
    whole: bool


def cut(layout: Layout, span: slice) -> Layout:
    """The part of every row that `span` names."""
    parts = (None if x is None else x[:, span] for x in (layout.real, layout.documents))
    return Layout(layout.positions[:, span], *parts)


def spans(length: int, size: int) -> list[slice]:
    """Cut `length` into blocks of `size`, the last one shorter."""
    return [slice(at, min(at + size, length)) for at in range(0, length, size)]


def tiles_of(pairs: Pairs, queries: slice, columns: int) -> Iterator[Tile]:
    """The tiles of one block of queries, `columns` keys wide, without those that are surely masked."""
    keys = spans(pairs.keys.positions.shape[1], columns)
    seen, whole = tile_bounds(pairs.mask, cut(pairs.queries, queries), pairs.keys, columns)
    for span, is_seen, is_whole in zip(keys, seen.tolist(), whole.tolist(), strict=True):
        if is_seen:
            yield Tile(queries, span, is_whole)


def tile_bounds(
    mask: Mask, queries: Layout, keys: Layout, columns: int
) -> tuple[Bool[Tensor, " s"], Bool[Tensor, " s"]]:
    """For each block of keys, whether any of these queries may see any of it, and whether each sees all of it.

    The first may be True of a tile that is empty, the second False of one that is whole: they go by bounds.
    """
    least, most = block_bounds(keys.positions, columns)
    low, high = queries.positions.amin(dim=1, keepdim=True), queries.positions.amax(dim=1, keepdim=True)
    seen, whole = least == least, least == least
    if mask.causal:
        seen, whole = seen & (high >= least), whole & (low >= most)
    if mask.window is not None:
        seen = seen & (low - most < mask.window) & (least - high < mask.window)
        whole = whole & (high - least < mask.window) & (most - low < mask.window)
    if keys.real is not None:
        none, all_real = block_bounds(keys.real.long(), columns)
        seen, whole = seen & (all_real > 0), whole & (none > 0)
    if queries.documents is not None and keys.documents is not None:
        first, last = block_bounds(keys.documents, columns)
        low, high = (
            queries.documents.amin(dim=1, keepdim=True),
            queries.documents.amax(dim=1, keepdim=True),
        )
        seen = seen & (low <= last) & (high >= first)
        whole = whole & (low == last) & (high == first)
    return seen.any(dim=0), whole.all(dim=0)


def block_bounds(x: Int[Tensor, "b s"], size: int) -> tuple[Int[Tensor, "b _"], Int[Tensor, "b _"]]:
    """The smallest and the largest entry of each block of each row; the last block may be shorter."""
    short = -x.shape[1] % size
    filled = torch.cat([x, x[:, -1:].expand(-1, short)], dim=1) if short else x
    blocks = rearrange(filled, "b (n c) -> b n c", c=size)
    return blocks.amin(dim=2), blocks.amax(dim=2)


def tile_products(
    q: Float[Tensor, "b h t e"], k: Float[Tensor, "b k s e"], scoring: Scoring
) -> Float[Tensor, "b h t s"]:
    """The scaled and capped products of a tile; head i goes by key head ⌊i·k/h⌋."""
    products = by_group(q, k.mT) * scoring.scale
    return products if scoring.soft_cap is None else cap_scores(products, scoring.soft_cap)
