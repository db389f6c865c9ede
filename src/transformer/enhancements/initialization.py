"""The first weights of GPT-2 (Radford et al. 2019, §2.3) and of BERT (its released code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import nn

from ..base.sockets import InitializationConfig, OutputProjection


@dataclass(frozen=True)
class GPT2Config(InitializationConfig):
    """N(0, 0.02²) for every matrix, zero biases; maps onto the residual stream are scaled by 1/√(their number).

    With L layers of two sub-layers that number is 2L: the sum of all branches has the same variance at any depth.
    """

    kind: ClassVar[str] = "gpt2"
    std: Annotated[float, Gt(0)] = 0.02

    def initialize(self, model: nn.Module) -> None:
        """Set the weights of every linear map and embedding in `model`, by type."""
        outputs = sum(isinstance(module, OutputProjection) for module in model.modules())
        for module in model.modules():
            if isinstance(module, nn.Linear):
                std = self.std * outputs**-0.5 if isinstance(module, OutputProjection) else self.std
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.std)


@dataclass(frozen=True)
class TruncatedNormalConfig(InitializationConfig):
    """N(0, std²) cut off at two standard deviations for every matrix, zero biases: BERT's."""

    kind: ClassVar[str] = "truncated_normal"
    std: Annotated[float, Gt(0)] = 0.02

    def initialize(self, model: nn.Module) -> None:
        """Set the weights of every linear map and embedding in `model`, by type."""
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=self.std, a=-2 * self.std, b=2 * self.std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
