"""The first weights of GPT-2 (Radford et al. 2019, §2.3), of BERT and of T5 (their released code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import nn

from ..base.attention import MultiHeadAttention
from ..base.embedding import TokenEmbedding
from ..base.sockets import InitializationConfig, OutputProjection
from .attention.grouped_query import GroupedQueryAttention
from .position.t5_bias import CausalT5Bias


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


@dataclass(frozen=True)
class FanInConfig(InitializationConfig):
    """N(0, 1/n) for every matrix of n inputs, zero biases, embeddings N(0, 1): T5's.

    Attention without the factor 1/√e has queries smaller by it, so that its first scores are of the size of scaled
    ones; in general by 1/(√e · scale). T5's relative biases are N(0, 1/d_model).
    """

    kind: ClassVar[str] = "fan_in"

    def initialize(self, model: nn.Module) -> None:
        """Set the weights of every linear map and embedding in `model`, by type."""
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        widths = [module.embedding_dim for module in model.modules() if isinstance(module, TokenEmbedding)]
        for module in model.modules():
            if isinstance(module, MultiHeadAttention | GroupedQueryAttention):
                d_head = module.q_proj.out_features // module.n_heads
                nn.init.normal_(
                    module.q_proj.weight, std=(module.q_proj.in_features * d_head) ** -0.5 / module.scale
                )
            elif isinstance(module, CausalT5Bias) and widths:
                nn.init.normal_(module.table.weight, std=widths[0] ** -0.5)
