"""The first weights of Mamba's linear maps (arXiv 2312.00752, the authors' code)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import nn

from ...base.sockets import InitializationConfig, OutputProjection


@dataclass(frozen=True)
class MambaInitializationConfig(InitializationConfig):
    """U(±1/√fan_in) for every matrix, zero biases, N(0, std²) embeddings.

    Maps onto the residual stream are divided by the root of their number, so that depth leaves its variance alone. The
    parameters of the state-space models themselves keep what their modules gave them.
    """

    kind: ClassVar[str] = "mamba_initialization"
    std: Annotated[float, Gt(0)] = 0.02

    def initialize(self, model: nn.Module) -> None:
        """Set the weights of every linear map and embedding in `model`, by type."""
        outputs = sum(isinstance(module, OutputProjection) for module in model.modules())
        for module in model.modules():
            if isinstance(module, nn.Linear):
                scale = outputs**-0.5 if isinstance(module, OutputProjection) else 1.0
                bound = scale / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.std)
