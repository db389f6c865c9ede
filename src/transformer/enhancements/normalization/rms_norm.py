"""Root-mean-square layer normalization (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from ...base.normalization import LayerNormConfig
from ...base.sockets import Config, Enhancement, NormConfig
from ..compose import replace_parts

C = TypeVar("C", bound=Config)


class RMSNorm(nn.Module):
    """Divide each token's vector by its root mean square, then scale each dimension (equation 4).

        RMSNorm(x) = x / √(mean(x²) + ε) · g

    LayerNorm without the mean and without the bias. The paper has no ε; everyone adds one inside the root.
    Computed in float32 or better and cast back, as in LLaMA. Cost: O(d) per token.
    """

    def __init__(self, d_model: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Normalize each token by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.epsilon)
        return (normed * self.weight).to(x.dtype)


@dataclass(frozen=True)
class RMSNormConfig(NormConfig):
    """Root-mean-square normalization with a gain."""

    kind: ClassVar[str] = "rms_norm"
    epsilon: Annotated[float, Gt(0)] = 1e-6

    def build(self, d_model: int) -> RMSNorm:
        return RMSNorm(d_model, self.epsilon)


def rms_norm(epsilon: float = 1e-6) -> Enhancement:
    """Use RMSNorm wherever there is a LayerNorm."""

    def apply(config: C) -> C:
        return replace_parts(config, LayerNormConfig, lambda _: RMSNormConfig(epsilon))

    return apply
