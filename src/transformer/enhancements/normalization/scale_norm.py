"""ScaleNorm (Nguyen and Salazar 2019, arXiv 1910.05895): one learned length for every token's vector.

    ScaleNorm(x) = g · x / ‖x‖

g is one number for the whole layer and √d at first, the length that a vector of d entries of variance 1 has. It is
RMSNorm with one gain instead of d. A vector shorter than ε is divided by ε; the paper has no ε. Computed in float32 or
better and cast back. Cost: O(d) per token; one parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from ...base.sockets import Config, Enhancement, NormConfig
from .replace_norms import replace_norms

C = TypeVar("C", bound=Config)


class ScaleNorm(nn.Module):
    """Bring each token's vector to the length g."""

    def __init__(self, d_model: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), math.sqrt(d_model)))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalize each token by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp(min=self.epsilon)
        return (wide * (self.weight / length)).to(x.dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ScaleNormConfig(NormConfig):
    """Every vector to one learned length."""

    kind: ClassVar[str] = "scale_norm"
    epsilon: Annotated[float, Gt(0)] = 1e-5

    def build(self, d_model: int) -> ScaleNorm:
        return ScaleNorm(d_model, self.epsilon)


def scale_norm(epsilon: float = 1e-5) -> Enhancement:
    """Use ScaleNorm for every norm of the residual stream."""

    def apply(config: C) -> C:
        return replace_norms(config, ScaleNormConfig(epsilon))

    return apply
