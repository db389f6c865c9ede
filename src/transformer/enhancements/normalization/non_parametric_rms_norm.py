"""RMSNorm without a gain (FalconMamba, Zuo et al. 2024, arXiv 2410.05355 §2; RMSNorm: arXiv 1910.07467).

    y = x / √(mean(x²) + ε)

RMSNorm with nothing to learn in it: the map that follows can take its gain over. FalconMamba's mixers normalize B, C
and what becomes Δ so, against spikes of the loss. Computed in float32 or better and cast back. Cost: as RMSNorm,
without its d parameters.
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


class NonParametricRMSNorm(nn.Module):
    """Divide each token's vector by its root mean square, and no more."""

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalize each token by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.epsilon)).to(x.dtype)


@dataclass(frozen=True)
class NonParametricRMSNormConfig(NormConfig):
    """Root-mean-square normalization without a gain."""

    kind: ClassVar[str] = "non_parametric_rms_norm"
    epsilon: Annotated[float, Gt(0)] = 1e-6

    def build(self, d_model: int) -> NonParametricRMSNorm:
        return NonParametricRMSNorm(self.epsilon)


def non_parametric_rms_norm(epsilon: float = 1e-6) -> Enhancement:
    """Use RMSNorm without a gain for every norm of the residual stream."""

    def apply(config: C) -> C:
        return replace_norms(config, NonParametricRMSNormConfig(epsilon))

    return apply
