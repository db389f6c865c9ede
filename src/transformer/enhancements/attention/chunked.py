"""Memory-efficient attention (Rabe and Staats 2021, arXiv 2112.05682, §2–3 and figure 1).

The division of a softmax can wait until the end. For each chunk of keys compute, with its own maximum m,

    m = max S      l = Σ e^(S−m)      O = e^(S−m) V

and combine chunks by rescaling each to the common maximum; the output is ΣO / Σl. Each chunk is checkpointed: the
backward pass computes its scores again. What a chunk of queries needs is itself checkpointed, so that its summaries
are kept only while it is worked on. No maximum is differentiated by: it cancels.

Unlike FlashAttention this is plain autograd, and can be differentiated as often as one likes. As in the paper chunks
of keys grow as √s: they are √(s·e) long, so that a chunk's scores and the summaries of all chunks are as many. With
`rows` queries at a time that is O(√n) numbers beside inputs, output and a bias, which is dense already. Unlike the
paper's, chunks that a mask surely empties are skipped. Cost: O(t·s·e), scores computed three times in training: once
in the forward pass, twice in the backward one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...base.sockets import Pairs, Scoring
from .tiles import Tile, accumulator, autocast_inputs, by_group, mask_tile, spans, tile_products, tiles_of

T = TypeVar("T")
ROWS = 128
"""Queries at a time."""


@dataclass(frozen=True)
class Summary:
    """A softmax over some of the keys, not yet divided."""

    top: Float[Tensor, "b h t 1"]
    total: Float[Tensor, "b h t 1"]
    values: Float[Tensor, "b h t e"]

    def join(self, other: Summary) -> Summary:
        """The softmax over the keys of both."""
        top = torch.maximum(self.top, other.top)
        base = top.masked_fill(top == -torch.inf, 0)  # −∞ − (−∞) is no number
        mine, others = torch.exp(self.top - base), torch.exp(other.top - base)
        return Summary(
            top, mine * self.total + others * other.total, mine * self.values + others * other.values
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    pairs: Pairs,
    scoring: Scoring,
    rows: int = ROWS,
    columns: int | None = None,
) -> Float[Tensor, "b h t _"]:
    """Attention by `rows` queries and `columns` keys at a time, √(s·e) unless given.

    A query that sees no key gives zeros. A compiled model calls this as it is.
    """
    q, k, v = autocast_inputs(q, k, v)
    columns = max(1, math.isqrt(k.shape[2] * v.shape[3])) if columns is None else columns
    attend, cuts = _Chunks(pairs, scoring, columns), spans(q.shape[2], rows)
    # cut by one split each: the gradient of a slice would be as large as what it is cut from
    biases = [None] * len(cuts) if pairs.bias is None else torch.split(pairs.bias, rows, dim=2)
    with torch.autocast(q.device.type, enabled=False):
        chunks = [
            _again(scoring, attend.queries, chunk, k, v, scoring.sinks, bias, span)
            for chunk, bias, span in zip(torch.split(q, rows, dim=2), biases, cuts, strict=True)
        ]
    return torch.cat(chunks, dim=2)


@dataclass(frozen=True)
class _Chunks:
    """What is the same for every chunk."""

    pairs: Pairs
    scoring: Scoring
    columns: int

    def queries(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, bias: Tensor | None, span: slice
    ) -> Tensor:
        """The output of one chunk of queries."""
        q = q.to(accumulator(q))
        found = _nothing(q, v) if sinks is None else _sink(q, v, sinks)
        keys, values = torch.split(k, self.columns, dim=2), torch.split(v, self.columns, dim=2)
        biases = [None] * len(keys) if bias is None else torch.split(bias, self.columns, dim=3)
        for tile in tiles_of(self.pairs, span, self.columns):
            n = tile.keys.start // self.columns
            chunk = _again(self.scoring, self.summarize, q, keys[n], values[n], biases[n], tile)
            found = found.join(Summary(*chunk))
        return (found.values / found.total.masked_fill(found.total == 0, 1)).to(v.dtype)

    def summarize(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, tile: Tile
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One chunk of keys: its maximum, its sum and its weighted values."""
        products = tile_products(q, k.to(q.dtype), self.scoring)
        scores = mask_tile(products, bias, self.pairs, tile)
        top = scores.detach().amax(dim=-1, keepdim=True)
        weights = torch.exp(scores - top.masked_fill(top == -torch.inf, 0))
        total = weights.sum(dim=-1, keepdim=True)
        if self.scoring.dropout:
            weights = torch.dropout(weights, self.scoring.dropout, train=True)
        return top, total, by_group(weights, v.to(q.dtype))


def _nothing(q: Tensor, v: Tensor) -> Summary:
    """The softmax over no key."""
    total = q.new_zeros(*q.shape[:3], 1)
    return Summary(total - torch.inf, total, q.new_zeros(*q.shape[:3], v.shape[3]))


def _sink(q: Tensor, v: Tensor, sinks: Tensor) -> Summary:
    """The softmax over each head's sink, whose value is nothing."""
    score = sinks.to(q.dtype)[None, :, None, None].expand(*q.shape[:3], 1)
    top = score.detach()
    return Summary(top, torch.exp(score - top), q.new_zeros(*q.shape[:3], v.shape[3]))


def _again(scoring: Scoring, function: Callable[..., T], *inputs: object) -> T:
    """Call the function now, and once more in the backward pass instead of keeping what it computes."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(  # type: ignore[no-any-return]
        function, *inputs, use_reentrant=False, preserve_rng_state=scoring.dropout > 0
    )
