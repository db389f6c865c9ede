"""Tasks of memory: say again what was read, all of it, part of it, or what a key calls for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from ..errors import DataError
from ..symbols import BLANK
from .problem import Problems, Symbols, TaskConfig, read_then_answer

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class CopyingTask(TaskConfig):
    """Read `items` symbols of an alphabet, then `gap` blanks, then write the symbols again (arXiv 1511.06464 §5.1).

    x₁ … x_n 0 … 0 GO → x₁ … x_n. Every symbol stands where it does in every problem, so that fixed distances do. The
    symbol GO is the last of the vocabulary. As in running text, what was written so far is read too.
    """

    kind: ClassVar[str] = "copying"
    items: Count = 16
    gap: Annotated[int, Ge(0)] = 16
    alphabet: Count = 8

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 2

    @property
    def length(self) -> int:
        return 2 * self.items + self.gap

    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        items = dice.integers(1, self.alphabet + 1, (n, self.items))
        blanks = np.full((n, self.gap), BLANK, dtype=np.int64)
        return read_then_answer(np.concatenate([items, blanks], axis=1), items, self.alphabet + 1)


@dataclass(frozen=True)
class SelectiveCopyingTask(TaskConfig):
    """As copying, but the symbols stand among blanks at places that differ (arXiv 2312.00752 §4.1.1).

    `context` places, of which `items` have a symbol of the alphabet and the others a blank; then as many symbols GO as
    there are items, at which the items are to be told in their order. What was told is not read.
    """

    kind: ClassVar[str] = "selective_copying"
    items: Count = 16
    context: Count = 256
    alphabet: Count = 14

    def __post_init__(self) -> None:
        if self.items > self.context:
            raise DataError(
                f"{self.items} items have no room in a context of {self.context}; raise task.context"
            )

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 2

    @property
    def length(self) -> int:
        return self.context + self.items

    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        items = dice.integers(1, self.alphabet + 1, (n, self.items))
        places = np.sort(dice.random((n, self.context)).argsort(1)[:, : self.items], axis=1)
        read = np.full((n, self.length), BLANK, dtype=np.int64)
        np.put_along_axis(read, places, items, axis=1)
        read[:, self.context :] = self.alphabet + 1
        labels, asked = np.zeros_like(read), np.zeros(read.shape, dtype=np.bool_)
        labels[:, self.context :], asked[:, self.context :] = items, True
        return Problems(read, labels, asked)


@dataclass(frozen=True)
class InductionTask(TaskConfig):
    """Random symbols with a special one among them; at its second appearance tell what followed the first.

    The induction heads of arXiv 2209.11895 as a task, as in arXiv 2312.00752 §4.1.2: `context` symbols, the last of
    them special. What was learned at one length can be asked at any other.
    """

    kind: ClassVar[str] = "induction"
    context: Annotated[int, Ge(4)] = 256
    alphabet: Count = 15

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 2

    @property
    def length(self) -> int:
        return self.context

    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        read = dice.integers(1, self.alphabet + 1, (n, self.context))
        first, rows = dice.integers(0, self.context - 2, n), np.arange(n)
        read[rows, first] = read[:, -1] = self.alphabet + 1
        labels, asked = np.zeros_like(read), np.zeros(read.shape, dtype=np.bool_)
        labels[:, -1], asked[:, -1] = read[rows, first + 1], True
        return Problems(read, labels, asked)


@dataclass(frozen=True)
class AssociativeRecallTask(TaskConfig):
    """Multi-query associative recall, MQAR (arXiv 2312.04927 §4.1): tell the value of each key that comes again.

    k₁ v₁ k₂ v₂ … for `pairs` different keys; then each key once more, at a place drawn by a power law, with blanks (or
    `noise`: random symbols) between. Keys are of the first half of `symbols`, values of the second. Distances between
    the two appearances have density ∝ x^(power − 1): the smaller `power`, the more of them are short.
    """

    kind: ClassVar[str] = "associative_recall"
    pairs: Count = 8
    context: Annotated[int, Ge(4)] = 64
    symbols: Annotated[int, Ge(4)] = 8192
    power: float = 0.01
    noise: bool = False

    def __post_init__(self) -> None:
        if 4 * self.pairs > self.context:
            raise DataError(
                f"{self.pairs} pairs and their questions need a context of {4 * self.pairs}, got {self.context}"
            )
        if self.pairs > self.symbols // 2 - 1:
            raise DataError(f"{self.symbols} symbols have no {self.pairs} different keys; raise task.symbols")
        if self.power <= 0:
            raise DataError(f"power must be more than 0, got {self.power}; 1 draws all distances alike")

    @property
    def vocab_size(self) -> int:
        return self.symbols

    @property
    def length(self) -> int:
        return self.context

    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        half, told = self.symbols // 2, 2 * self.pairs
        keys = _different(dice, n, self.pairs, 1, half)
        values = dice.integers(half, self.symbols, (n, self.pairs))
        read = (
            dice.integers(0, self.symbols, (n, self.context))
            if self.noise
            else np.zeros((n, self.context), int)
        )
        read[:, 0:told:2], read[:, 1:told:2] = keys, values
        room = (self.context - told) // 2
        density = np.arange(1, room + 1, dtype=np.float64) ** (self.power - 1)
        # weighted draws without repetition, by the keys of Efraimidis and Spirakis (2006)
        order = (dice.random((n, room)) ** (1 / density)).argsort(1)[:, ::-1][:, : self.pairs]
        places = told + 2 * order
        np.put_along_axis(read, places, keys, axis=1)
        labels, asked = np.zeros_like(read), np.zeros(read.shape, dtype=np.bool_)
        np.put_along_axis(labels, places, values, axis=1)
        np.put_along_axis(asked, places, True, axis=1)
        return Problems(read, labels, asked)


def _different(dice: np.random.Generator, n: int, count: int, first: int, stop: int) -> Symbols:
    """Draw `n` rows of `count` different numbers from first to stop − 1."""
    if count * 8 > stop - first:
        return first + dice.random((n, stop - first)).argsort(1)[:, :count]
    rows = dice.integers(first, stop, (n, count))
    while True:
        ordered = np.sort(rows, axis=1)
        again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1))
        if not len(again):
            return rows
        rows[again] = dice.integers(first, stop, (len(again), count))
