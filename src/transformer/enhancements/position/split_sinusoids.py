"""Sinusoidal positions with all sines before all cosines (Marian, arXiv 1804.00344).

    PE(pos, i) = sin(pos / base^(2i/d)),  PE(pos, ⌈d/2⌉ + i) = cos(pos / base^(2i/d))

The numbers are those of arXiv 1706.03762 §3.5, which has sines and cosines in turn: a permutation of the dimensions. A
model trained from its first weights cannot tell the two apart; published weights can. Cost: as the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...base.position import SinusoidalPosition, SinusoidalPositionConfig


class SplitSinusoidalPosition(SinusoidalPosition):
    """Fixed position encodings, sines first."""

    def __init__(self, d_model: int, max_seq_len: int = 1024, base: float = 10000.0) -> None:
        super().__init__(d_model, max_seq_len, base)
        self.table = torch.cat([self.table[:, 0::2], self.table[:, 1::2]], dim=1)


@dataclass(frozen=True)
class SplitSinusoidalPositionConfig(SinusoidalPositionConfig):
    """The sinusoids of the paper, all sines before all cosines, for positions below `max_seq_len`."""

    kind: ClassVar[str] = "split_sinusoidal_position"

    def build(self, d_model: int) -> SplitSinusoidalPosition:
        return SplitSinusoidalPosition(d_model, self.max_seq_len, self.base)
