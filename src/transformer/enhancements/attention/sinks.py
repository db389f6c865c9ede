"""Learned attention sinks (gpt-oss, arXiv 2508.10925 §2; the need for one: Xiao et al. 2023, arXiv 2309.17453).

    weight_j = exp(score_j) / (exp(sink_h) + Σ_i exp(score_i))

A softmax must give all its weight away, so a head with nothing to say gives it to some token, mostly the first; when
that token leaves a window, the model breaks. Here each head has a learned score that takes part in the softmax and
has no value: a place to put weight that changes nothing. With sink 0 this is Miller's "softmax plus one". Xiao et al.
keep the first tokens themselves, or train a first token for the purpose; a score needs no token. Cost: one number a
head. A query that sees no key gives zeros, without a special case.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...base.sockets import Enhancement
from .grouped_query import change_attention


def softmax_with_sinks(
    scores: Float[Tensor, "b h t s"], visible: Bool[Tensor, "#b 1 #t s"] | None, sinks: Float[Tensor, " h"]
) -> Float[Tensor, "b h t s"]:
    """The softmax over the visible keys and the head's sink; the sink's own weight is left out."""
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    sink = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]


def attention_sinks() -> Enhancement:
    """Give every self-attention a learned sink for each head."""
    return change_attention(lambda part: replace(part, sinks=True))
