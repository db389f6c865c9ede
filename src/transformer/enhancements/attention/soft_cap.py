"""Logit soft-capping (Bello et al. 2016, arXiv 1611.09940 §5; in attention: Gemma 2, arXiv 2408.00118 §2).

    score = c · tanh(q·k · scale / c)

No score can leave ±c, so no weight can run away, and scores well inside the cap are left as they are: the derivative
at 0 is 1. As in the FlashAttention library the cap is on the scaled product; a position's bias is added after it and
masked scores are −∞ after it. Cost: a tanh for each pair. PyTorch's fused kernels have none, so these models run on
the other kernels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.sockets import Config, Enhancement
from .grouped_query import change_attention

C = TypeVar("C", bound=Config)


def cap_scores(scores: Float[Tensor, "*n"], soft_cap: float) -> Float[Tensor, "*n"]:
    """Squash `scores` into ±soft_cap."""
    return soft_cap * torch.tanh(scores / soft_cap)


def soft_cap(cap: float = 50.0) -> Enhancement:
    """Cap the scores of every self-attention; Gemma 2 caps at 50."""
    return change_attention(lambda part: replace(part, soft_cap=cap))
