"""FlashAttention (Dao et al. 2022, arXiv 2205.14135, algorithms 1, 2 and 4; Dao 2023, arXiv 2307.08691 §3.1).

Attention without its t × s matrix, in plain PyTorch: for a block of queries, keys and values come by block by block,
and a softmax that is still incomplete is corrected when a larger score turns up. With S the scores of a tile,

    m' = max(m, rowmax S)      l' = e^(m−m') l + Σ e^(S−m')      O' = e^(m−m') O + e^(S−m') V

from m = −∞, l = 0, O = 0; at the end the output is O / l and L = m + log l is kept. The backward pass has its own
loop over the tiles: it computes P = e^(S−L) again, and with D = rowsum(dO ∘ O)

    dV = Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP − D)      dQ = scale dS K      dK = scale dSᵀ Q

A sink is where the loop begins, with m = sink and l = 1, and gets −e^(sink−L) D. A soft cap c multiplies dS by
1 − (S/c)². Dropped weights are drawn again from a kept seed.

The papers' kernels keep a tile in the fast memory of a GPU: the point is how many bytes move (`bytes_moved`), and
`triton_flash` does that. Here each step of a tile is a call to PyTorch, so this is for reading, for proof, and for
long sequences on any device: O(t) memory beside a bias, which is dense already. Memory is the papers', the loops are
those of FlashAttention-2, queries outside, in the backward pass too. The time is O(t·s·e), less what is masked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...base.sockets import Pairs, Scoring
from .tiles import (
    Tile,
    accumulator,
    autocast_inputs,
    by_group,
    mask_tile,
    spans,
    summed_by_group,
    tile_products,
    tiles_of,
)

ROWS, COLUMNS = 128, 256
"""The size of a tile: queries and keys."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def flash_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    pairs: Pairs,
    scoring: Scoring,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> Float[Tensor, "b h t _"]:
    """Attention tile by tile, `rows` queries by `columns` keys. A query that sees no key gives zeros.

    The backward pass cannot itself be differentiated. A compiled model calls this as it is.
    """
    q, k, v = autocast_inputs(q, k, v)
    seed = int(torch.randint(2**62, ())) if scoring.dropout else 0
    call = _Call(pairs, replace(scoring, sinks=None), rows, columns, seed)
    return _Flash.apply(q, k, v, pairs.bias, scoring.sinks, call)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class _Call:
    """What both passes need to know, besides tensors to differentiate by."""

    pairs: Pairs
    scoring: Scoring
    rows: int
    columns: int
    seed: int

    def dropping(self, like: Tensor) -> _Dropping:
        return _Dropping(self.scoring.dropout, torch.Generator(like.device).manual_seed(self.seed))


@dataclass(frozen=True)
class _Dropping:
    """Drops weights tile after tile, in the same way each time that the tiles come by."""

    probability: float
    generator: torch.Generator

    def factors(self, weights: Tensor) -> Tensor | None:
        """What the next tile's weights are multiplied by: 0 or 1 / (1 − p)."""
        if not self.probability:
            return None
        drawn = torch.rand(weights.shape, generator=self.generator, device=weights.device)
        return (drawn >= self.probability).to(weights.dtype) / (1 - self.probability)


class _Flash(torch.autograd.Function):
    """The two passes. Only inputs, output and L are kept between them."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, call: _Call
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            out, lse = _attend(q, k, v, bias, sinks, call)
        ctx.save_for_backward(q, k, v, bias, sinks, out, lse)
        ctx.call = call
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        with torch.autocast(slope.device.type, enabled=False):
            gradients = _differentiate(saved, slope, ctx.call, ctx.needs_input_grad[3])
        return *(
            None if d is None else d.to(x.dtype) for d, x in zip(gradients, saved[:5], strict=True)
        ), None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, call: _Call
) -> tuple[Tensor, Tensor]:
    """The output, and L: +∞ for a query that sees nothing, whose weights are e^(S−L) = 0 then."""
    dtype, dropping = accumulator(q), call.dropping(q)
    out = q.new_empty(*q.shape[:3], v.shape[3], dtype=v.dtype)
    lse = q.new_empty(*q.shape[:3], 1, dtype=dtype)
    for queries in spans(q.shape[2], call.rows):
        block = q[:, :, queries].to(dtype)
        top = block.new_full((*block.shape[:3], 1), -torch.inf)
        total, values = torch.zeros_like(top), block.new_zeros(*block.shape[:3], v.shape[3])
        if sinks is not None:
            top = sinks.to(dtype)[None, :, None, None].expand_as(top)
            total = torch.ones_like(top)
        for tile in tiles_of(call.pairs, queries, call.columns):
            products = tile_products(block, k[:, :, tile.keys].to(dtype), call.scoring)
            scores = mask_tile(products, _part(bias, tile), call.pairs, tile)
            higher = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
            base = higher.masked_fill(higher == -torch.inf, 0)  # −∞ − (−∞) is no number
            weights, correction = torch.exp(scores - base), torch.exp(top - base)
            total = correction * total + weights.sum(dim=-1, keepdim=True)
            factors = dropping.factors(weights)
            weights = weights if factors is None else weights * factors
            values = correction * values + by_group(weights, v[:, :, tile.keys].to(dtype))
            top = higher
        out[:, :, queries] = (values / total.masked_fill(total == 0, 1)).to(v.dtype)
        lse[:, :, queries] = torch.where(total == 0, torch.inf, top + torch.log(total))
    return out, lse


def _part(bias: Tensor | None, tile: Tile) -> Tensor | None:
    return None if bias is None else bias[..., tile.queries, tile.keys]


def _differentiate(
    saved: tuple[Any, ...], slope: Tensor, call: _Call, biased: bool
) -> tuple[Tensor | None, ...]:
    """The gradients by queries, keys, values, bias (if `biased`) and sinks, from the output's."""
    q, k, v, bias, sinks, out, lse = saved
    dtype, dropping, scoring, n_kv_heads = lse.dtype, call.dropping(q), call.scoring, k.shape[1]
    d_q, d_k, d_v = (torch.zeros_like(x, dtype=dtype) for x in (q, k, v))
    d_bias = torch.zeros_like(bias, dtype=dtype) if biased else None
    delta = (slope.to(dtype) * out.to(dtype)).sum(dim=-1, keepdim=True)
    for queries in spans(q.shape[2], call.rows):
        block, d_out = q[:, :, queries].to(dtype), slope[:, :, queries].to(dtype)
        for tile in tiles_of(call.pairs, queries, call.columns):
            keys, values = k[:, :, tile.keys].to(dtype), v[:, :, tile.keys].to(dtype)
            products = tile_products(block, keys, scoring)
            weights = torch.exp(mask_tile(products, _part(bias, tile), call.pairs, tile) - lse[:, :, queries])
            kept, d_weights, factors = weights, by_group(d_out, values.mT), dropping.factors(weights)
            if factors is not None:
                kept, d_weights = kept * factors, d_weights * factors
            d_scores = weights * (d_weights - delta[:, :, queries])
            if d_bias is not None:
                part = d_bias[..., tile.queries, tile.keys]
                part += d_scores.sum_to_size(part.shape)
            if scoring.soft_cap is not None:
                d_scores = d_scores * (1 - (products / scoring.soft_cap).square())
            d_q[:, :, queries] += scoring.scale * by_group(d_scores, keys)
            d_k[:, :, tile.keys] += scoring.scale * summed_by_group(d_scores, block, n_kv_heads)
            d_v[:, :, tile.keys] += summed_by_group(kept, d_out, n_kv_heads)
    d_sinks = None
    if sinks is not None:
        d_sinks = -(torch.exp(sinks.to(dtype)[None, :, None, None] - lse) * delta).sum(dim=(0, 2, 3))
    return d_q, d_k, d_v, d_bias, d_sinks


@dataclass(frozen=True)
class Traffic:
    """Bytes that one head's forward pass moves between slow and fast memory, and what must fit in the fast one.

    plain: attention as it is defined, step by step. tiled: FlashAttention. fast: a tile with what belongs to it.
    """

    plain: int
    tiled: int
    fast: int


def bytes_moved(
    t: int, s: int, e: int, rows: int = ROWS, columns: int = COLUMNS, element: int = 2, state: int = 4
) -> Traffic:
    """Count what moves for `t` queries and `s` keys of width `e`, nothing masked (arXiv 2205.14135 §3.2).

    Plain attention reads Q and K and writes S; reads S and writes P; reads P and V and writes O: θ(t·e + t·s). Tile by
    tile, Q is read and O written once, K and V are read once for each block of queries, and L is written:
    θ(t·s·e / rows), where `rows` can be as large as fast memory allows, so θ(t·s·e² / fast). An entry takes `element`
    bytes, a number that is added up in takes `state`.
    """
    plain = element * (2 * t * e + 2 * s * e + 4 * t * s)
    blocks = -(-t // rows)
    tiled = element * (2 * t * e + blocks * 2 * s * e) + state * t
    fast = element * (rows + 2 * columns) * e + state * (rows * columns + rows * e + 2 * rows)
    return Traffic(plain, tiled, fast)
