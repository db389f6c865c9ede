"""What every made task gives: symbols to read, and which answers are asked for where."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

Symbols = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AnswerBatch:
    """Problems of one length. tokens: what is read; labels: the answer at each place; asked: where one is wanted.

    An answer is told from the symbols up to its place, that one included: there is no shift between the two.
    """

    tokens: Int[Tensor, "b t"]
    labels: Int[Tensor, "b t"]
    asked: Bool[Tensor, "b t"]


@dataclass(frozen=True)
class Problems:
    """The same as arrays: rows of problems."""

    tokens: Symbols
    labels: Symbols
    asked: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: slice | Symbols) -> AnswerBatch:
        """Return some of the rows as tensors."""
        parts = (self.tokens[rows], self.labels[rows], self.asked[rows])
        return AnswerBatch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


class TaskConfig(ABC):
    """A task as data."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many symbols there are, the blank included."""

    @property
    @abstractmethod
    def length(self) -> int:
        """How many symbols a problem has."""

    @abstractmethod
    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        """Draw `n` problems."""

    def every(self) -> Problems | None:
        """Return all problems there are, where they can be listed and training is on a share of them; else None."""
        return None


def read_then_answer(question: Symbols, answer: Symbols, go: int) -> Problems:
    """Problems `question GO answer` as running text: each symbol of the answer is told from those before it."""
    go_column = np.full((len(question), 1), go, dtype=np.int64)
    whole = np.concatenate([question, go_column, answer], axis=1)
    asked = np.zeros((len(whole), whole.shape[1] - 1), dtype=np.bool_)
    asked[:, question.shape[1] :] = True
    return Problems(whole[:, :-1], whole[:, 1:], asked)
