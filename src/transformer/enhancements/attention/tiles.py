"""What attention kernels that work tile by tile share: which tiles there are, and the scores of one.

A tile is some of the queries with some of the keys. Most of what a mask empties is seen from the smallest and the
largest position of each side, so those tiles are never computed: half of them under a causal mask, all but O(t·w)
pairs under a window. The bounds are looked up for one block of queries at a time: O(s) memory, never O(t·s).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...base.sockets import Layout, Mask, Pairs, Scoring
from .soft_cap import cap_scores


@dataclass(frozen=True)
class Tile:
    """A block of queries with a block of keys. whole: every query of it sees every key of it."""

    queries: slice
    keys: slice
    whole: bool


def spans(length: int, size: int) -> list[slice]:
    """Cut `length` into blocks of `size`, the last one perhaps shorter."""
    return [slice(at, min(at + size, length)) for at in range(0, length, size)]


def cut(layout: Layout, span: slice) -> Layout:
    """The part of every row that `span` names."""
    real, documents = (None if x is None else x[:, span] for x in (layout.real, layout.documents))
    return Layout(layout.positions[:, span], real, documents)


def tiles_of(pairs: Pairs, queries: slice, columns: int) -> Iterator[Tile]:
    """The tiles of one block of queries, `columns` keys wide, without those that are surely masked."""
    keys = spans(pairs.keys.positions.shape[1], columns)
    seen, whole = tile_bounds(pairs.mask, cut(pairs.queries, queries), pairs.keys, columns)
    for span, is_seen, is_whole in zip(keys, seen.tolist(), whole.tolist(), strict=True):
        if is_seen:
            yield Tile(queries, span, is_whole)


def tile_bounds(
    mask: Mask, queries: Layout, keys: Layout, columns: int
) -> tuple[Bool[Tensor, " _"], Bool[Tensor, " _"]]:
    """For each block of keys, whether any of these queries may see any of it, and whether each sees all of it.

    They go by bounds: the first may be True of a tile that is empty, the second False of one that is whole.
    """
    least, most = _block_bounds(keys.positions, columns)
    low, high = queries.positions.amin(dim=1, keepdim=True), queries.positions.amax(dim=1, keepdim=True)
    seen = whole = torch.ones_like(low == least)
    if mask.causal:
        seen, whole = seen & (high >= least), whole & (low >= most)
    if mask.window is not None:
        seen = seen & (low - most < mask.window) & (least - high < mask.window)
        whole = whole & (high - least < mask.window) & (most - low < mask.window)
    if keys.real is not None:
        all_real, any_real = _block_bounds(keys.real.long(), columns)
        seen, whole = seen & (any_real > 0), whole & (all_real > 0)
    if queries.documents is not None and keys.documents is not None:
        least, most = _block_bounds(keys.documents, columns)
        low, high = queries.documents.amin(1, keepdim=True), queries.documents.amax(1, keepdim=True)
        seen, whole = seen & (low <= most) & (least <= high), whole & (low == most) & (high == least)
    return seen.any(dim=0), whole.all(dim=0)


def _block_bounds(x: Int[Tensor, "#b s"], size: int) -> tuple[Int[Tensor, "#b _"], Int[Tensor, "#b _"]]:
    """The smallest and the largest entry of each block of each row."""
    filled = torch.cat([x, x[:, -1:].expand(-1, -x.shape[1] % size)], dim=1)
    blocks = rearrange(filled, "b (n c) -> b n c", c=size)
    return blocks.amin(dim=2), blocks.amax(dim=2)


def tile_products(
    q: Float[Tensor, "b h t e"], k: Float[Tensor, "b k s e"], scoring: Scoring
) -> Float[Tensor, "b h t s"]:
    """The scaled and capped products of a tile."""
    products = by_group(q, k.mT) * scoring.scale
    return products if scoring.soft_cap is None else cap_scores(products, scoring.soft_cap)


def mask_tile(
    products: Float[Tensor, "b h t s"], bias: Float[Tensor, "#b #h t s"] | None, pairs: Pairs, tile: Tile
) -> Float[Tensor, "b h t s"]:
    """The scores of a tile: its products with the tile's own bias, −∞ where the mask is closed."""
    scores = products if bias is None else products + bias.to(products.dtype)
    seen = None
    if not tile.whole:
        seen = pairs.mask.visible(cut(pairs.queries, tile.queries), cut(pairs.keys, tile.keys))
    return scores if seen is None else scores.masked_fill(~seen[:, None], -torch.inf)


def by_group(x: Float[Tensor, "b h t _"], y: Float[Tensor, "b k _ _"]) -> Float[Tensor, "b h t _"]:
    """The product of each query head's matrix with that of its key-value head: head i goes by head ⌊i·k/h⌋."""
    grouped = rearrange(x, "b (k g) t c -> b k (g t) c", k=y.shape[1])
    return rearrange(grouped @ y, "b k (g t) c -> b (k g) t c", t=x.shape[2])


def summed_by_group(
    x: Float[Tensor, "b h t s"], y: Float[Tensor, "b h t _"], n_kv_heads: int
) -> Float[Tensor, "b k s _"]:
    """Σ xᵀ y over the query heads of each key-value head, which is how a gradient comes back to a key or value."""
    grouped_x, grouped_y = (rearrange(z, "b (k g) t c -> b k (g t) c", k=n_kv_heads) for z in (x, y))
    return grouped_x.mT @ grouped_y


def accumulator(x: Tensor) -> torch.dtype:
    """The precision to add up in: float32 for the half precisions."""
    return torch.promote_types(x.dtype, torch.float32)


def autocast_inputs(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs in the precision that autocast, where it is on, gives to products."""
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in inputs)
