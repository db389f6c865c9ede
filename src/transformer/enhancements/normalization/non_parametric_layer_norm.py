"""LayerNorm without gain and bias (OLMo, Groeneveld et al. 2024, arXiv 2402.00838 §2.1).

    y = (x − μ) / √(σ² + ε)

LayerNorm of 2016 with nothing to learn in it: the maps that follow can take its gain and bias over. OLMo's report found
it safe and fast, and prefers it to a norm with gains for that. Cost: as LayerNorm, without its 2·d parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Config, Enhancement, NormConfig
from .replace_norms import replace_norms

C = TypeVar("C", bound=Config)


class NonParametricLayerNorm(nn.Module):
    """Normalize each token's vector to mean 0 and variance 1, and no more."""

    def __init__(self, d_model: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.d_model, self.epsilon = d_model, epsilon

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalize each token by itself."""
        return F.layer_norm(x, (self.d_model,), eps=self.epsilon)


@dataclass(frozen=True)
class NonParametricLayerNormConfig(NormConfig):
    """Layer normalization without gain and bias."""

    kind: ClassVar[str] = "non_parametric_layer_norm"
    epsilon: Annotated[float, Gt(0)] = 1e-5

    def build(self, d_model: int) -> NonParametricLayerNorm:
        return NonParametricLayerNorm(d_model, self.epsilon)


def non_parametric_layer_norm(epsilon: float = 1e-5) -> Enhancement:
    """Use LayerNorm without gain and bias for every norm of the residual stream."""

    def apply(config: C) -> C:
        return replace_norms(config, NonParametricLayerNormConfig(epsilon))

    return apply
