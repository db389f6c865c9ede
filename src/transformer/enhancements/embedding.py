"""Token embeddings times any factor, and normalized before the first block.

    Embedding(i) = norm(multiplier · E_i)

BLOOM (arXiv 2211.05100 §3.2.1) normalizes its embeddings, which made its training stable; Granite multiplies them by a
number of its own instead of √d_model. Cost: one norm for each token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..base.embedding import EmbeddingConfig, TokenEmbedding
from ..base.normalization import NoNormConfig
from ..base.sockets import Enhancement, NormConfig


class NormedEmbedding(TokenEmbedding):
    """A learned vector for each token, multiplied and normalized."""

    def __init__(self, vocab_size: int, d_model: int, multiplier: float, norm: nn.Module) -> None:
        super().__init__(vocab_size, d_model, multiplier)
        self.norm = norm

    def forward(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Look the tokens up."""
        return self.norm(super().forward(tokens))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class NormedEmbeddingConfig(EmbeddingConfig):
    """Token embeddings times `multiplier` (null: as `scaled` says), then normalized."""

    kind: ClassVar[str] = "normed_embedding"
    multiplier: float | None = None
    norm: NormConfig = NoNormConfig()

    def build(self, vocab_size: int, d_model: int) -> NormedEmbedding:
        multiplier = (d_model**0.5 if self.scaled else 1.0) if self.multiplier is None else self.multiplier
        return NormedEmbedding(vocab_size, d_model, multiplier, self.norm.build(d_model))


def untied_embeddings() -> Enhancement:
    """Give the map to logits a matrix of its own, instead of the embedding's."""

    def apply(config: Any) -> Any:
        return replace(config, tie_embeddings=False)

    return apply
