"""A fixed multiplier on what each branch adds (Granite, IBM 2024; after Yang et al. 2023, arXiv 2310.02244).

    x ← x + m · Dropout(f(LN(x)))

Pre-norm, with one number m for all branches. With m about 1/√(number of layers) the sum of all branches stays of one
size at any depth, which is what lets step sizes found on a shallow model serve a deep one (depth-μP); Granite's
released models take m from such a search. Not LayerScale: m is not learned and is the same in every dimension.
The stack ends in one more norm. Cost: one multiplication for each entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from ...base.sockets import Config, Context, Enhancement, Layer, NormConfig
from ...base.stack import StackConfig
from ...base.wiring import Wiring
from ..compose import replace_parts
from ..normalization.placement import PlacementConfig, first_norm, place

C = TypeVar("C", bound=Config)


class ResidualMultiplier(Wiring):
    """x + m · Dropout(f(LN(x)))."""

    def __init__(self, branch: Layer, norm: nn.Module, dropout: float = 0.0, multiplier: float = 1.0) -> None:
        super().__init__(branch, norm, dropout)
        self.multiplier = multiplier

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Multiply what the branch makes of the normalized stream."""
        change = self.dropout(self.branch(self.norm(x), context, state))
        return x + change * self.multiplier  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ResidualMultiplierConfig(PlacementConfig):
    """Pre-norm with a fixed multiplier on the branch."""

    kind: ClassVar[str] = "residual_multiplier"
    multiplier: Annotated[float, Gt(0)] = 1.0

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> ResidualMultiplier:
        return ResidualMultiplier(branch, norm.build(d_model), self.dropout, self.multiplier)


def residual_multiplier(multiplier: float | None = None) -> Enhancement:
    """Wire every sub-layer pre-norm and multiply what it adds; null is 1/√(layers of the stack)."""

    def rewire(stack: StackConfig) -> StackConfig:
        chosen = len(stack.blocks) ** -0.5 if multiplier is None else multiplier
        return place(stack, lambda dropout: ResidualMultiplierConfig(dropout, chosen), first_norm(stack))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, rewire)

    return apply
