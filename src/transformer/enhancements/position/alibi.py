"""ALiBi (Press, Smith and Lewis 2021, arXiv 2108.12409): attention with linear biases.

    score(i, j) = q_i · k_j / √e − m_h · |i − j|

with a fixed slope m_h for each head (§3); under a causal mask |i − j| is the paper's i − j. Nothing is added to the
embeddings. For n heads, n a power of two, the slopes are the powers 2^(−8h/n), h = 1 … n. For another number the
authors' code, followed here, takes those of the next lower power of two, p, and then every second one of 2p, from the
first: 12 heads have 2^−1, 2^−2 … 2^−8 and 2^−0.5, 2^−1.5, 2^−2.5, 2^−3.5. In a stack that reads both ways the bias is
the same in both directions, for which the paper says nothing.

The distance is one of positions, not of columns, so that padding, packing and caches change nothing. No parameters;
one addition per score, and a fused kernel has to read the bias, O(h·t·s) numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ...base.sockets import Config, Enhancement, Layout, Position, PositionConfig
from .schemes import edit_stacks, heads_of, with_position

C = TypeVar("C", bound=Config)


def slope_exponents(n_heads: int) -> list[float]:
    """log₂ of each head's slope."""
    power = 2 ** (n_heads.bit_length() - 1)
    exponents = [-8 * head / power for head in range(1, power + 1)]
    between = [-8 * head / (2 * power) for head in range(1, 2 * power + 1, 2)]
    return exponents + between[: n_heads - power]


class ALiBi(Position):
    """Lower the score of a query and a key in proportion to their distance, in each head by its own slope."""

    exponents: Tensor

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        # kept as exponents, which are exact in any type that a model may be cast to; slopes would not be
        self.register_buffer("exponents", torch.tensor(slope_exponents(n_heads)), persistent=False)

    def bias(self, queries: Layout, keys: Layout) -> Float[Tensor, "#b h t s"]:
        """−m_h·|i − j|, in float32 or better."""
        slopes = self.exponents.to(torch.promote_types(self.exponents.dtype, torch.float32)).exp2()
        distance = (queries.positions[:, :, None] - keys.positions[:, None, :]).abs()
        return -rearrange(slopes, "h -> 1 h 1 1") * rearrange(distance, "b t s -> b 1 t s")


@dataclass(frozen=True)
class ALiBiConfig(PositionConfig):
    """ALiBi for attention of `n_heads` heads."""

    kind: ClassVar[str] = "alibi"
    n_heads: Annotated[int, Ge(1)] = 8

    def build(self, d_model: int) -> ALiBi:
        return ALiBi(self.n_heads)


def alibi(n_heads: int | None = None) -> Enhancement:
    """Use ALiBi in every stack, instead of the scheme it has; n_heads null is the number that its attention has."""

    def apply(config: C) -> C:
        return edit_stacks(
            config, lambda stack: with_position(stack, ALiBiConfig(n_heads or heads_of(stack)))
        )

    return apply
