"""RMSNorm whose gain is stored as its distance from one (Gemma Team 2024, arXiv 2403.08295).

    y = x / √(mean(x²) + ε) · (1 + g)

The same function as RMSNorm with gain 1 + g, in other numbers: g begins at 0, so a coarse floating-point type is at its
finest where the gain begins, and weight decay, if any, pulls the gain to 1 instead of 0. The paper says RMSNorm and no
more; 1 + g, and that all of it is computed in float32 and cast once at the end, is what the published weights need.
Cost: O(d) per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from ...base.sockets import Config, Enhancement, NormConfig
from .replace_norms import replace_norms

C = TypeVar("C", bound=Config)


class UnitOffsetRMSNorm(nn.Module):
    """Divide each token's vector by its root mean square and scale each dimension by 1 + g."""

    def __init__(self, d_model: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_model))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalize each token by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.epsilon)
        return (normed * (1 + self.weight.to(wide.dtype))).to(x.dtype)


@dataclass(frozen=True)
class UnitOffsetRMSNormConfig(NormConfig):
    """Root-mean-square normalization with the gain 1 + g."""

    kind: ClassVar[str] = "unit_offset_rms_norm"
    epsilon: Annotated[float, Gt(0)] = 1e-6

    def build(self, d_model: int) -> UnitOffsetRMSNorm:
        return UnitOffsetRMSNorm(d_model, self.epsilon)


def unit_offset_rms_norm(epsilon: float = 1e-6) -> Enhancement:
    """Use RMSNorm with the gain 1 + g for every norm of the residual stream."""

    def apply(config: C) -> C:
        return replace_norms(config, UnitOffsetRMSNormConfig(epsilon))

    return apply
