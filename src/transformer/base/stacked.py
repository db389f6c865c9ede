"""Linear maps of one shape, one above the other in one matrix: as the heads of attention share theirs, experts do.

They live in `base` because the rules for first weights and for weight decay go by the type of a module, and a matrix
that holds several maps is initialized map by map: what Xavier's rule asks for is the size of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .sockets import OutputProjection

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Rows, all maps (`Float[x _ _]`) and their biases (`Float[x _]`, or none), to the rows mapped."""


class StackedLinear(nn.Linear):
    """`n_maps` linear maps of one shape; the product that is passed in says which row goes through which."""

    def __init__(self, n_maps: int, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, n_maps * out_features, bias=bias)
        self.n_maps = n_maps

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "... _"], product: Product
    ) -> Float[Tensor, "... _"]:
        """Map rows, each by the map that `product` has for it."""
        bias = None if self.bias is None else rearrange(self.bias, "(x f) -> x f", x=self.n_maps)
        return product(x, rearrange(self.weight, "(x f) d -> x f d", x=self.n_maps), bias)


class StackedOutputProjection(StackedLinear, OutputProjection):
    """Maps that write to the residual stream."""


def matrices(module: nn.Linear) -> Sequence[Tensor]:
    """The matrix of each map of a module: one, or those that it holds one above the other."""
    if isinstance(module, StackedLinear):
        return module.weight.chunk(module.n_maps)
    return (module.weight,)
