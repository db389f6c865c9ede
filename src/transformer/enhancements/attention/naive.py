"""Attention as it is defined, for every kind of head and score that this project has: what all kernels must equal.

    weights = softmax(cap(q kᵀ · scale) + bias, masked, beside a sink),   output = weights v

Grouped heads, soft caps and sinks are the general attention's (`grouped_query`, `soft_cap`, `sinks`). Without them
this is the paper's own function, `base.scaled_dot_product_attention`. Cost: O(t·s·e) operations and O(t·s) memory.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...base.attention import scaled_dot_product_attention
from ...base.sockets import Pairs, Scoring
from .sinks import softmax_with_sinks
from .soft_cap import cap_scores


def naive_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    pairs: Pairs,
    scoring: Scoring,
) -> Float[Tensor, "b h t _"]:
    """Weigh all values for each query. A query that may see no key gives zeros."""
    if scoring.soft_cap is None and scoring.sinks is None and q.shape[1] == k.shape[1]:
        return scaled_dot_product_attention(q, k, v, pairs, scoring)
    weights = attention_weights(q, k, pairs, scoring)
    weights = F.dropout(weights, scoring.dropout, training=scoring.dropout > 0).to(v.dtype)
    grouped = rearrange(weights, "b (k g) t s -> b k g t s", k=k.shape[1])
    return rearrange(torch.einsum("bkgts,bkse->bkgte", grouped, v), "b k g t e -> b (k g) t e")


def attention_weights(
    q: Float[Tensor, "b h t e"], k: Float[Tensor, "b k s e"], pairs: Pairs, scoring: Scoring
) -> Float[Tensor, "b h t s"]:
    """The weight of each key for each query, before dropout; zeros for a query that may see no key.

    With sinks the weights of a query add up to less than 1.
    """
    grouped = rearrange(q, "b (k g) t e -> b k g t e", k=k.shape[1])
    scores = (
        rearrange(torch.einsum("bkgte,bkse->bkgts", grouped, k), "b k g t s -> b (k g) t s") * scoring.scale
    )
    if scoring.soft_cap is not None:
        scores = cap_scores(scores, scoring.soft_cap)
    if pairs.bias is not None:
        scores = scores + pairs.bias
    if scoring.sinks is not None:
        return softmax_with_sinks(scores, pairs.visible, scoring.sinks)
    if pairs.visible is None:
        return torch.softmax(scores, dim=-1)
    sighted = pairs.visible.any(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(~pairs.visible & sighted, -torch.inf), dim=-1) * sighted
