"""Embeddings narrower than the model (ALBERT, arXiv 1909.11942 §3.1; ELECTRA, arXiv 2003.10555 §3.3).

    x = Dropout(LN(E[token] + S[segment] + P[position])) W + b,   E, S, P and LN of width e < d

A vocabulary of v tokens costs v·e + e·d weights instead of v·d. The two parts belong together: the embedding gives
vectors of width e, and the stack makes them d wide before its first block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from ..base.sockets import Layer, Layout, Position
from ..enhancements.architecture.bert_input import (
    NormedInputStack,
    NormedInputStackConfig,
    SegmentedEmbedding,
    SegmentedEmbeddingConfig,
)

Width = Annotated[int, Ge(1)]


class ProjectedInputStack(NormedInputStack):
    """A stack that maps what it is given to its own width, after positions, norm and dropout."""

    def __init__(
        self,
        blocks: list[Layer],
        position: Position,
        norm: nn.Module,
        dropout: float,
        input_norm: nn.Module,
        input_proj: nn.Linear,
    ) -> None:
        super().__init__(blocks, position, norm, dropout, input_norm)
        self.input_proj = input_proj

    def embed(self, x: Float[Tensor, "b t _"], layout: Layout) -> Float[Tensor, "b t d"]:
        """Turn narrow embeddings into the input of the first block."""
        return self.input_proj(super().embed(x, layout))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ProjectedInputStackConfig(NormedInputStackConfig):
    """A stack whose embeddings are `d_embedding` wide."""

    kind: ClassVar[str] = "projected_input_stack"
    d_embedding: Width = 128

    def build(self, d_model: int) -> ProjectedInputStack:
        blocks, position = (
            [block.build(d_model) for block in self.blocks],
            self.position.build(self.d_embedding),
        )
        norm, input_norm = self.norm.build(d_model), self.input_norm.build(self.d_embedding)
        return ProjectedInputStack(
            blocks, position, norm, self.dropout, input_norm, nn.Linear(self.d_embedding, d_model)
        )


@dataclass(frozen=True)
class NarrowEmbeddingConfig(SegmentedEmbeddingConfig):
    """Token and segment embeddings of `d_embedding` numbers, whatever the model's width."""

    kind: ClassVar[str] = "narrow_embedding"
    d_embedding: Width = 128

    def build(self, vocab_size: int, d_model: int) -> SegmentedEmbedding:
        multiplier = math.sqrt(self.d_embedding) if self.scaled else 1.0
        return SegmentedEmbedding(vocab_size, self.d_embedding, multiplier, self.n_segments)
