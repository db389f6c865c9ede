"""Attention by PyTorch's fused kernels: the same function as `base.attention`, without the matrix of weights.

On a GPU these are FlashAttention (Dao et al. 2022, arXiv 2205.14135; 2307.08691) and memory-efficient attention
(Rabe and Staats 2021, arXiv 2112.05682); on a CPU, a tiled kernel of the same kind. PyTorch chooses.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...base.sockets import Pairs, Scoring
from .routing import by_definition


def sdpa_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    pairs: Pairs,
    scoring: Scoring,
) -> Float[Tensor, "b h t _"]:
    """softmax(q kᵀ · scale + bias, masked) v, with O(t) memory where PyTorch's kernel for the device allows it.

    `is_causal` is used only where the mask is exactly the lower triangle: PyTorch aligns it to the top left corner,
    which would be wrong for new queries against cached keys. A query that sees no key gives zeros, as in the
    reference; the mask is opened for it and its output erased, since the softmax of nothing is undefined. A sink is
    one more key of zeros, whose bias is the sink's score and whose value is zero. There is no soft cap in these
    kernels: capped attention is computed by the definition.
    """
    if scoring.soft_cap is not None:
        return by_definition(
            q, k, v, pairs, scoring, kernel="sdpa", reason="PyTorch's kernels have no soft cap"
        )
    dropout, scale, grouped = scoring.dropout, scoring.scale, q.shape[1] != k.shape[1]
    bias = None if pairs.bias is None else pairs.bias.to(q.dtype)
    if scoring.sinks is not None:
        k, v, bias = _with_sinks(k, v, bias, pairs, scoring.sinks.to(q.dtype))
        return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale, enable_gqa=grouped)
    if bias is None and pairs.triangular:
        return F.scaled_dot_product_attention(q, k, v, None, dropout, True, scale=scale, enable_gqa=grouped)
    if pairs.visible is None:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale, enable_gqa=grouped)
    sighted = pairs.visible.any(dim=-1, keepdim=True)
    seen = pairs.visible | ~sighted
    mask = seen if bias is None else bias.masked_fill(~seen, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, enable_gqa=grouped) * sighted


def _with_sinks(
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    bias: Float[Tensor, "#b #h t s"] | None,
    pairs: Pairs,
    sinks: Float[Tensor, " h"],
) -> tuple[Float[Tensor, "b k _ e"], Float[Tensor, "b k _ _"], Float[Tensor, "#b h t _"]]:
    """Add the sink as a key that every query sees."""
    length, keys = pairs.queries.positions.shape[1], k.shape[2]
    scores = k.new_zeros(1, 1, length, keys) if bias is None else bias
    if pairs.visible is not None:
        scores = scores.masked_fill(~pairs.visible, float("-inf"))
    scores = scores.expand(-1, len(sinks), length, keys)
    sink = sinks[None, :, None, None].expand(len(scores), -1, length, 1)
    k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    return k, v, torch.cat([scores, sink], dim=-1)
