"""The first weights. The paper does not give them; these are those of its authors' own code (tensor2tensor)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .embedding import TokenEmbedding
from .sockets import InitializationConfig


@dataclass(frozen=True)
class XavierConfig(InitializationConfig):
    """Xavier-uniform matrices, zero biases, and embeddings of unit length: N(0, 1/d_model)."""

    kind: ClassVar[str] = "xavier_uniform"

    def initialize(self, model: nn.Module) -> None:
        """Set the weights of every linear map and embedding in `model`, by type."""
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, TokenEmbedding | nn.Embedding):
                nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
