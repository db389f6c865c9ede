"""T5's relative position bias (Raffel et al. 2019, arXiv 1910.10683 §2.1): a learned number per head and distance.

    score(i, j) = q_i · k_j + b_h[bucket(j − i)]

Near distances have a bucket each; farther ones share buckets that widen logarithmically up to `max_distance`, and all
beyond share the last. With B buckets for one direction, E = ⌊B/2⌋ of them exact, a distance n ≥ 0 is in bucket

    n                                                     if n < E
    min(E + ⌊ln(n/E) / ln(max_distance/E) · (B − E)⌋, B − 1)   otherwise

A causal stack has all its buckets (32) for the past. A stack that reads both ways has half of them for keys at or
before the query, the other half for those after it. Up to a distance of 8 the two agree on the past, and giving a
decoder the encoder's buckets goes unnoticed there; `t5_bias()` gives each stack its own kind.

One table per stack, added in all its layers; none in cross-attention. T5 has no 1/√e in its scores; that is the
attention's business, not the bias's. B·h parameters; a look-up and an addition per score and layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...base.sockets import Config, Enhancement, Layout, Position, PositionConfig
from ...base.stack import StackConfig
from .schemes import edit_stacks, heads_of, with_position

C = TypeVar("C", bound=Config)
Direction = Literal["causal", "bidirectional"]


def distance_bucket(
    distance: Int[Tensor, "b t s"], n_buckets: int, max_distance: int
) -> Int[Tensor, "b t s"]:
    """The bucket of a distance that is not negative."""
    exact = n_buckets // 2
    steps = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (steps * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
    return torch.where(distance < exact, distance, far)


class CausalT5Bias(Position):
    """A learned bias for each bucket of distances to the past."""

    def __init__(self, n_heads: int, n_buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(n_buckets, n_heads)
        self.max_distance = max_distance

    def bias(self, queries: Layout, keys: Layout) -> Float[Tensor, "#b h t s"]:
        """b[bucket(j − i)]."""
        relative = keys.positions[:, None, :] - queries.positions[:, :, None]
        return rearrange(self.table(self.bucket(relative)), "b t s h -> b h t s")  # type: ignore[no-any-return]

    def bucket(self, relative: Int[Tensor, "b t s"]) -> Int[Tensor, "b t s"]:
        """The bucket of a key's position less the query's; a key after the query is not seen and counts as at it."""
        return distance_bucket((-relative).clamp(min=0), self.table.num_embeddings, self.max_distance)


class BidirectionalT5Bias(CausalT5Bias):
    """A learned bias for each bucket of distances: the first half to the past, the second to the future."""

    def bucket(self, relative: Int[Tensor, "b t s"]) -> Int[Tensor, "b t s"]:
        """The bucket of a key's position less the query's."""
        half = self.table.num_embeddings // 2
        near_or_far = distance_bucket(relative.abs(), half, self.max_distance)
        return torch.where(relative > 0, near_or_far + half, near_or_far)


@dataclass(frozen=True)
class T5BiasConfig(PositionConfig):
    """T5's relative position bias for attention of `n_heads` heads, to the past only or in both directions."""

    kind: ClassVar[str] = "t5_bias"
    n_heads: Annotated[int, Ge(1)] = 8
    direction: Direction = "causal"
    n_buckets: Annotated[int, Ge(4)] = 32
    max_distance: Annotated[int, Ge(2)] = 128

    def __post_init__(self) -> None:
        if self.n_buckets % 4:
            raise ValueError(
                f"n_buckets {self.n_buckets} cannot be halved for the direction and again for the exact distances; "
                f"the nearest number that can is {4 * max(1, round(self.n_buckets / 4))}"
            )
        if self.max_distance <= self.n_buckets // 2:
            raise ValueError(
                f"max_distance {self.max_distance} is within the distances that n_buckets {self.n_buckets} may tell "
                f"apart one by one; the least is {self.n_buckets // 2 + 1}"
            )

    def build(self, d_model: int) -> CausalT5Bias:
        kinds = {"causal": CausalT5Bias, "bidirectional": BidirectionalT5Bias}
        return kinds[self.direction](self.n_heads, self.n_buckets, self.max_distance)


def t5_bias(n_buckets: int = 32, max_distance: int = 128, n_heads: int | None = None) -> Enhancement:
    """Use T5's bias in every stack, instead of the scheme it has: causal, and bidirectional where it reads both ways.

    n_heads: null is the number that the stack's attention has.
    """

    def biased(stack: StackConfig, direction: Direction) -> StackConfig:
        heads = n_heads or heads_of(stack)
        return with_position(stack, T5BiasConfig(heads, direction, n_buckets, max_distance))

    def apply(config: C) -> C:
        return edit_stacks(
            config,
            decoder=lambda stack: biased(stack, "causal"),
            encoder=lambda stack: biased(stack, "bidirectional"),
        )

    return apply
