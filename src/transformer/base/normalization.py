"""Layer normalization (arXiv 1607.06450), which arXiv 1706.03762 §3.1 applies after each residual addition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .sockets import NormConfig


class LayerNorm(nn.Module):
    """Normalize each token's vector to mean 0 and variance 1, then scale and shift each dimension.

        LN(x) = γ · (x − μ) / √(σ² + ε) + β,   μ, σ² over the d_model entries of one token

    σ² is the biased variance (divided by d, not d − 1) and ε stands inside the root: a widely copied version has
    both otherwise. Computed by PyTorch's fused kernel, in float32 under autocast.
    """

    def __init__(self, d_model: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Normalize each token by itself."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class LayerNormConfig(NormConfig):
    """Layer normalization with gain and bias."""

    kind: ClassVar[str] = "layer_norm"
    epsilon: Annotated[float, Gt(0)] = 1e-5

    def build(self, d_model: int) -> LayerNorm:
        return LayerNorm(d_model, self.epsilon)


@dataclass(frozen=True)
class NoNormConfig(NormConfig):
    """No normalization: what follows the last block when each block already ends in a norm."""

    kind: ClassVar[str] = "no_norm"

    def build(self, d_model: int) -> nn.Module:
        return nn.Identity()
