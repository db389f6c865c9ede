"""LayerNorm with a gain and no bias (MPT, MosaicML 2023; LayerNorm: Ba et al. 2016, arXiv 1607.06450).

    y = γ · (x − μ) / √(σ² + ε)

The shift of each dimension is left out, as the biases of linear maps are in models that have none. Cost: as
LayerNorm, without d of its 2·d parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Config, Enhancement, NormConfig
from .replace_norms import replace_norms

C = TypeVar("C", bound=Config)


class BiasFreeLayerNorm(nn.Module):
    """Normalize each token's vector to mean 0 and variance 1, then scale each dimension."""

    def __init__(self, d_model: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Normalize each token by itself."""
        return F.layer_norm(x, self.weight.shape, self.weight, eps=self.epsilon)


@dataclass(frozen=True)
class BiasFreeLayerNormConfig(NormConfig):
    """Layer normalization with gain and without bias."""

    kind: ClassVar[str] = "bias_free_layer_norm"
    epsilon: Annotated[float, Gt(0)] = 1e-5

    def build(self, d_model: int) -> BiasFreeLayerNorm:
        return BiasFreeLayerNorm(d_model, self.epsilon)


def bias_free_layer_norm(epsilon: float = 1e-5) -> Enhancement:
    """Use LayerNorm without bias for every norm of the residual stream."""

    def apply(config: C) -> C:
        return replace_norms(config, BiasFreeLayerNormConfig(epsilon))

    return apply
