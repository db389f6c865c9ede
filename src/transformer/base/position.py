"""Positional encoding (arXiv 1706.03762 §3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .sockets import Layout, Position, PositionConfig


def sinusoids(max_seq_len: int, d_model: int, base: float = 10000.0) -> Float[Tensor, "t d"]:
    """The table of §3.5, computed in float64: sine in the even dimensions, cosine in the odd ones.

        PE(pos, 2i) = sin(pos / 10000^(2i/d_model)),  PE(pos, 2i+1) = cos(pos / 10000^(2i/d_model))

    Some public code puts all sines before all cosines, or divides by d/2 − 1: a permutation and another spectrum.
    """
    positions = torch.arange(max_seq_len, dtype=torch.float64)[:, None]
    angles = positions * base ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d_model]


class SinusoidalPosition(Position):
    """Fixed position encodings, added to the embeddings (§3.5)."""

    table: Tensor

    def __init__(self, d_model: int, max_seq_len: int = 1024, base: float = 10000.0) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        # kept in float64, so that a model of any precision adds the formula's value rounded once
        self.register_buffer("table", sinusoids(max_seq_len, d_model, base), persistent=False)

    def embed(self, x: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """x + PE(positions)."""
        return x + F.embedding(layout.positions, self.table).to(x.dtype)


class LearnedPosition(Position):
    """A learned vector for each position, added to the embeddings: row (E) of the paper's table 3."""

    def __init__(self, d_model: int, max_seq_len: int = 1024) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.table = nn.Embedding(max_seq_len, d_model)

    def embed(self, x: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """x + P(positions)."""
        return x + self.table(layout.positions).to(x.dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class NoPositionConfig(PositionConfig):
    """No position scheme: a causal mask alone tells the order."""

    kind: ClassVar[str] = "no_position"

    def build(self, d_model: int) -> Position:
        return Position()


@dataclass(frozen=True)
class SinusoidalPositionConfig(PositionConfig):
    """The sinusoids of §3.5, for positions below `max_seq_len`."""

    kind: ClassVar[str] = "sinusoidal_position"
    max_seq_len: Annotated[int, Ge(1)] = 1024
    base: Annotated[float, Gt(0)] = 10000.0

    def build(self, d_model: int) -> SinusoidalPosition:
        return SinusoidalPosition(d_model, self.max_seq_len, self.base)


@dataclass(frozen=True)
class LearnedPositionConfig(PositionConfig):
    """Learned position embeddings, for positions below `max_seq_len`."""

    kind: ClassVar[str] = "learned_position"
    max_seq_len: Annotated[int, Ge(1)] = 1024

    def build(self, d_model: int) -> LearnedPosition:
        return LearnedPosition(d_model, self.max_seq_len)
