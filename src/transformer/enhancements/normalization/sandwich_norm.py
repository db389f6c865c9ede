"""Sandwich normalization (Ding et al. 2021, CogView, arXiv 2105.13290 §2.4): a norm before the branch and one after.

    x ← x + Dropout(LN_out(f(LN(x))))

Pre-norm, and what a branch adds is normalized too, so that no branch can add values that overflow in 16 bits. Gemma 2
wires its blocks so. The stack ends in one more norm. The dropout falls on what is added, as everywhere in this library;
CogView's own code drops before LN_out. Cost: one more norm per sub-layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from ...base.sockets import Config, Context, Enhancement, Layer, NormConfig
from ...base.stack import StackConfig
from ...base.wiring import Wiring
from ..compose import replace_parts
from .placement import PlacementConfig, first_norm, place

C = TypeVar("C", bound=Config)


class SandwichNorm(Wiring):
    """x + Dropout(LN_out(f(LN(x))))."""

    def __init__(self, branch: Layer, norm: nn.Module, output_norm: nn.Module, dropout: float = 0.0) -> None:
        super().__init__(branch, norm, dropout)
        self.output_norm = output_norm

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Normalize on the way into the branch and on the way out."""
        change = self.output_norm(self.branch(self.norm(x), context, state))
        return x + self.dropout(change)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SandwichNormConfig(PlacementConfig):
    """Normalize the input and the output of the branch."""

    kind: ClassVar[str] = "sandwich_norm"

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> SandwichNorm:
        return SandwichNorm(branch, norm.build(d_model), norm.build(d_model), self.dropout)


def sandwich_norm() -> Enhancement:
    """Put a norm before and after every sub-layer, and end every stack in one more."""

    def rewire(stack: StackConfig) -> StackConfig:
        return place(stack, SandwichNormConfig, first_norm(stack))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, rewire)

    return apply
