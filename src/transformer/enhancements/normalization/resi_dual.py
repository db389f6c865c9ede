"""ResiDual (Xie et al. 2023, arXiv 2304.14802): a post-norm and a pre-norm stream side by side.

    x_{k+1} = LN_k(x_k + f_k(x_k)),   d_{k+1} = d_k + f_k(x_k),   y = x_N + LN(d_N),   x_0 = d_0 = the embeddings

The sub-layers read x, which is normalized after each addition as in 2017, so that late layers still change it; d only
collects, so that gradients reach every layer as in pre-norm. Both streams get the same f_k(x_k), dropped alike. Between
sub-layers d stands beside x along the last axis, Float[b t 2d]: the first sub-layer opens the second stream, and the
stack ends in a norm, `ResiDualNorm`, that adds the two up. For training in 16 bits the paper may scale d down, which
its norm undoes; here it is not scaled. Cost: as post-norm, one more norm for the stack, and twice the stream to store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...base.normalization import LayerNormConfig
from ...base.sockets import Config, Context, Enhancement, Layer, NormConfig
from ...base.stack import StackConfig
from ...base.wiring import Wiring
from ..compose import replace_parts
from .placement import PlacementConfig, first_norm, place

C = TypeVar("C", bound=Config)


def _streams(
    x: Float[Tensor, "b t _"], d_model: int
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
    """The post-norm and the pre-norm stream: the first and the last d_model entries, the same ones at the start."""
    return x[..., :d_model], x[..., -d_model:]


class ResiDual(Wiring):
    """(x, d) → (LN(x + Dropout(f(x))), d + Dropout(f(x)))."""

    def __init__(self, d_model: int, branch: Layer, norm: nn.Module, dropout: float = 0.0) -> None:
        super().__init__(branch, norm, dropout)
        self.d_model = d_model

    def forward(
        self, x: Float[Tensor, "b t _"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t _"]:
        """Add to both streams what the branch makes of the first, and normalize the first."""
        post, dual = _streams(x, self.d_model)
        change = self.dropout(self.branch(post, context, state))
        return torch.cat([self.norm(post + change), dual + change], dim=-1)


@dataclass(frozen=True)
class ResiDualConfig(PlacementConfig):
    """Two streams; the stack must end in a `resi_dual_norm`."""

    kind: ClassVar[str] = "resi_dual"

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> ResiDual:
        return ResiDual(d_model, branch, norm.build(d_model), self.dropout)


class ResiDualNorm(nn.Module):
    """(x, d) → x + LN(d): the end of a stack with two streams."""

    def __init__(self, d_model: int, norm: nn.Module) -> None:
        super().__init__()
        self.d_model, self.norm = d_model, norm

    def forward(self, x: Float[Tensor, "b t _"]) -> Float[Tensor, "b t d"]:
        """Make one stream of the two."""
        post, dual = _streams(x, self.d_model)
        return post + self.norm(dual)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ResiDualNormConfig(NormConfig):
    """The end of a stack whose wiring is `resi_dual`; `norm` is that of the collecting stream."""

    kind: ClassVar[str] = "resi_dual_norm"
    norm: NormConfig = LayerNormConfig()

    def build(self, d_model: int) -> ResiDualNorm:
        return ResiDualNorm(d_model, self.norm.build(d_model))


def resi_dual() -> Enhancement:
    """Give every stack two streams, post-norm and pre-norm, added up at its end."""

    def rewire(stack: StackConfig) -> StackConfig:
        return place(stack, ResiDualConfig, ResiDualNormConfig(first_norm(stack)))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, rewire)

    return apply
