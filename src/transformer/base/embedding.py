"""Embeddings and softmax (arXiv 1706.03762 §3.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from .sockets import Config


class TokenEmbedding(nn.Embedding):
    """A learned vector for each token of the vocabulary, times `multiplier`.

        Embedding(i) = √d_model · E_i

    §3.4 multiplies by √d_model because the same matrix E, whose rows have about unit length, is also the weight of
    the map to logits. The reason is not in the paper; the effect is that embeddings and position encodings, added
    next, are of like size.
    """

    def __init__(self, vocab_size: int, d_model: int, multiplier: float = 1.0) -> None:
        super().__init__(vocab_size, d_model)
        self.multiplier = multiplier

    def forward(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Look the tokens up."""
        return super().forward(tokens) * self.multiplier


@dataclass(frozen=True)
class LinearHeadConfig(Config):
    """The map from hidden states to logits: a matrix and nothing else, as in §3.4."""

    kind: ClassVar[str] = "linear_head"

    def build(self, d_model: int, vocab_size: int) -> nn.Linear:
        return nn.Linear(d_model, vocab_size, bias=False)


@dataclass(frozen=True)
class EmbeddingConfig(Config):
    """Token embeddings: `scaled` multiplies them by √d_model, as in §3.4."""

    kind: ClassVar[str] = "embedding"
    scaled: bool = True

    def build(self, vocab_size: int, d_model: int) -> TokenEmbedding:
        return TokenEmbedding(vocab_size, d_model, math.sqrt(d_model) if self.scaled else 1.0)
