"""LayerScale (Touvron et al. 2021, CaiT, arXiv 2103.17239 §2): a small learned gain on each branch.

    x ← x + Dropout(λ ∘ f(LN(x)))

Pre-norm with a learned gain for each dimension of what a branch adds. λ begins at 0.1 in stacks of up to 18 layers, at
1e-5 up to 24 and at 1e-6 in deeper ones, so that the model is close to the identity at first; the paper sets these for
images and gives one depth for each, 18, 24 and "deeper". The stack ends in one more norm. Cost: d more parameters and
multiplications per sub-layer and token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from ...base.sockets import Config, Context, Enhancement, Layer, NormConfig
from ...base.stack import StackConfig
from ...base.wiring import Wiring
from ..compose import replace_parts
from .placement import PlacementConfig, first_norm, place

C = TypeVar("C", bound=Config)


class LayerScale(Wiring):
    """x + Dropout(λ ∘ f(LN(x)))."""

    def __init__(
        self, d_model: int, branch: Layer, norm: nn.Module, dropout: float = 0.0, initial: float = 1e-5
    ) -> None:
        super().__init__(branch, norm, dropout)
        self.weight = nn.Parameter(torch.full((d_model,), initial))

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Scale each dimension of what the branch makes of the normalized stream."""
        change = self.weight * self.branch(self.norm(x), context, state)
        return x + self.dropout(change)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LayerScaleConfig(PlacementConfig):
    """Pre-norm with a gain on the branch; `initial` is the gain's first value."""

    kind: ClassVar[str] = "layer_scale"
    initial: Annotated[float, Gt(0)] = 1e-5

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> LayerScale:
        return LayerScale(d_model, branch, norm.build(d_model), self.dropout, self.initial)


def layer_scale(initial: float | None = None) -> Enhancement:
    """Wire every sub-layer pre-norm with a gain on the branch, which begins at `initial` or as the depth says."""

    def rewire(stack: StackConfig) -> StackConfig:
        start = _by_depth(len(stack.blocks)) if initial is None else initial
        return place(stack, lambda dropout: LayerScaleConfig(dropout, start), first_norm(stack))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, rewire)

    return apply


def _by_depth(n_layers: int) -> float:
    return 0.1 if n_layers <= 18 else 1e-5 if n_layers <= 24 else 1e-6
