"""What a kernel does with a case it cannot compute: hand it to the definition, and say so once."""

from __future__ import annotations

import logging
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.sockets import Pairs, Scoring
from .naive import naive_attention

logger = logging.getLogger(__name__)


def by_definition(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    pairs: Pairs,
    scoring: Scoring,
    *,
    kernel: str,
    reason: str,
) -> Float[Tensor, "b h t _"]:
    """Compute by `naive_attention` in place of `kernel`; the reason is logged the first time it occurs."""
    if not torch.compiler.is_compiling():  # a log has no place in a graph
        _tell(kernel, reason)
    return naive_attention(q, k, v, pairs, scoring)


@cache
def _tell(kernel: str, reason: str) -> None:
    logger.info("the kernel %s computes by the definition: %s", kernel, reason)
