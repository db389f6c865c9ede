"""What BERT gives its first block (arXiv 1810.04805 §3 and figure 2): segments, and a norm of the sum.

    x = Dropout(LN(E[token] + S[segment] + P[position]))

A segment says which of two texts a token belongs to. The paper's figure shows the sum only; the norm and the dropout
after it are in the released code. The two are parts of their own: `SegmentedEmbedding` adds S to E, `NormedInputStack`
is a stack that normalizes what its first block reads, whatever its position scheme. Cost: a row for each segment,
one more addition and one more norm for each token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...base.embedding import EmbeddingConfig, TokenEmbedding
from ...base.normalization import LayerNormConfig
from ...base.sockets import Layer, Layout, NormConfig, Position
from ...base.stack import Stack, StackConfig


class SegmentedEmbedding(TokenEmbedding):
    """A learned vector for each token, times `multiplier`, plus one for the text that it belongs to."""

    def __init__(self, vocab_size: int, d_model: int, multiplier: float, n_segments: int) -> None:
        super().__init__(vocab_size, d_model, multiplier)
        self.segments = nn.Embedding(n_segments, d_model)

    def forward(
        self, tokens: Int[Tensor, "b t"], segments: Int[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Look the tokens up; without `segments` all of them belong to the first text."""
        if segments is None:
            return super().forward(tokens) + self.segments.weight[0]
        return super().forward(tokens) + self.segments(segments)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SegmentedEmbeddingConfig(EmbeddingConfig):
    """Token embeddings plus one of `n_segments` vectors for the text that a token belongs to."""

    kind: ClassVar[str] = "segmented_embedding"
    scaled: bool = False
    n_segments: Annotated[int, Ge(1)] = 2

    def build(self, vocab_size: int, d_model: int) -> SegmentedEmbedding:
        multiplier = math.sqrt(d_model) if self.scaled else 1.0
        return SegmentedEmbedding(vocab_size, d_model, multiplier, self.n_segments)


class NormedInputStack(Stack):
    """A stack that normalizes the sum of embeddings and position encodings, before the dropout on it."""

    def __init__(
        self, blocks: list[Layer], position: Position, norm: nn.Module, dropout: float, input_norm: nn.Module
    ) -> None:
        super().__init__(blocks, position, norm, dropout)
        self.input_norm = input_norm

    def embed(self, x: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """Turn token embeddings into the input of the first block."""
        return self.dropout(self.input_norm(self.position.embed(x, layout)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class NormedInputStackConfig(StackConfig):
    """A stack with a norm on what its first block reads."""

    kind: ClassVar[str] = "normed_input_stack"
    input_norm: NormConfig = LayerNormConfig()

    def build(self, d_model: int) -> NormedInputStack:
        blocks, position = [block.build(d_model) for block in self.blocks], self.position.build(d_model)
        norms = self.norm.build(d_model), self.input_norm.build(d_model)
        return NormedInputStack(blocks, position, norms[0], self.dropout, norms[1])
