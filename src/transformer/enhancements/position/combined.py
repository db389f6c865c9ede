"""Several position schemes in one stack, such as learned positions and T5's bias (MPNet, arXiv 2004.09297).

    embed: one after the other;  rotate: one after the other;  bias: the sum

Schemes that use different sites do not meet. MPNet's paper (§2.3) says of its positions only that they are given to the
model in full; that its network has a relative bias as well is in the released code. Cost: that of the schemes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import MinLen
from jaxtyping import Float
from torch import Tensor, nn

from ...base.position import LearnedPositionConfig
from ...base.sockets import Layout, Position, PositionConfig
from .t5_bias import T5BiasConfig


class CombinedPosition(Position):
    """Position schemes at work together."""

    def __init__(self, schemes: Sequence[Position]) -> None:
        super().__init__()
        self.schemes = nn.ModuleList(schemes)
        limits = [scheme.max_seq_len for scheme in schemes if scheme.max_seq_len is not None]
        self.max_seq_len = min(limits, default=None)

    def embed(self, x: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """What each scheme adds to the embeddings."""
        for scheme in self.schemes:
            x = scheme.embed(x, layout)  # type: ignore[operator]
        return x

    def rotate(
        self, q: Float[Tensor, "b h t e"], k: Float[Tensor, "b k t e"], layout: Layout
    ) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b k t e"]]:
        """Queries and keys, turned by each scheme."""
        for scheme in self.schemes:
            q, k = scheme.rotate(q, k, layout)  # type: ignore[operator]
        return q, k

    def bias(self, queries: Layout, keys: Layout) -> Float[Tensor, "#b h t s"] | None:
        """The sum of the biases; None where no scheme has one."""
        biases = [scheme.bias(queries, keys) for scheme in self.schemes]  # type: ignore[operator]
        there = [bias for bias in biases if bias is not None]
        return sum(there[1:], there[0]) if there else None


@dataclass(frozen=True)
class CombinedPositionConfig(PositionConfig):
    """Position schemes at work together, as data; the default is MPNet's."""

    kind: ClassVar[str] = "combined_position"
    schemes: Annotated[tuple[PositionConfig, ...], MinLen(1)] = (
        LearnedPositionConfig(),
        T5BiasConfig(direction="bidirectional"),
    )

    def build(self, d_model: int) -> CombinedPosition:
        return CombinedPosition([scheme.build(d_model) for scheme in self.schemes])
