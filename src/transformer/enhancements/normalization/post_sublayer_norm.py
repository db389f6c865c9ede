"""The norm after the sub-layer and before the addition (OLMo Team 2024, OLMo 2, arXiv 2501.00656).

    x ← x + Dropout(LN(f(x)))

Not the post-norm of 2017, which normalizes the sum: here the stream itself is never normalized, as in pre-norm, but
what a branch adds to it always is. The first branch reads the embeddings as they are. The stack ends in one more norm.
OLMo 2 uses RMSNorm, and normalizes queries and keys besides; both are enhancements of their own. Swin Transformer V2
(arXiv 2111.09883) introduced the placement for images. Cost: as pre-norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from ...base.sockets import Config, Context, Enhancement, Layer, NormConfig
from ...base.stack import StackConfig
from ...base.wiring import Wiring
from ..compose import replace_parts
from .placement import PlacementConfig, first_norm, place

C = TypeVar("C", bound=Config)


class PostSublayerNorm(Wiring):
    """x + Dropout(LN(f(x)))."""

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Normalize on the way out of the branch only."""
        return x + self.dropout(self.norm(self.branch(x, context, state)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PostSublayerNormConfig(PlacementConfig):
    """Normalize the output of the branch."""

    kind: ClassVar[str] = "post_sublayer_norm"

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> PostSublayerNorm:
        return PostSublayerNorm(branch, norm.build(d_model), self.dropout)


def post_sublayer_norm() -> Enhancement:
    """Normalize what every sub-layer adds, and end every stack in one more norm."""

    def rewire(stack: StackConfig) -> StackConfig:
        return place(stack, PostSublayerNormConfig, first_norm(stack))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, rewire)

    return apply
