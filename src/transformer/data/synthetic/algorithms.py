"""Tasks of computing: put in order, match brackets, keep count, do sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from ..errors import DataError
from .problem import Problems, Symbols, TaskConfig, read_then_answer

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class SortingTask(TaskConfig):
    """Read `items` numbers, then write them in order: x₁ … x_n GO → the same, smallest first."""

    kind: ClassVar[str] = "sorting"
    items: Count = 16
    alphabet: Count = 32

    @property
    def vocab_size(self) -> int:
        return self.alphabet + 2

    @property
    def length(self) -> int:
        return 2 * self.items

    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        items = dice.integers(1, self.alphabet + 1, (n, self.items))
        return read_then_answer(items, np.sort(items, axis=1), self.alphabet + 1)


@dataclass(frozen=True)
class DyckTask(TaskConfig):
    """Balanced brackets of several kinds; wherever one closes, tell which (arXiv 2105.11115).

    Words of Dyck-`kinds` with at most `depth` open at once. Opening brackets are 1 … kinds, closing ones follow. At
    each place before a closing bracket the answer is that bracket: it depends on a bracket any distance away.
    """

    kind: ClassVar[str] = "dyck"
    kinds: Count = 4
    depth: Count = 6
    context: Annotated[int, Ge(2)] = 64

    def __post_init__(self) -> None:
        if self.context % 2:
            raise DataError(f"balanced words have an even length, got task.context {self.context}")

    @property
    def vocab_size(self) -> int:
        return 2 * self.kinds + 1

    @property
    def length(self) -> int:
        return self.context - 1

    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        word, rows = np.zeros((n, self.context), dtype=np.int64), np.arange(n)
        stack, height = np.zeros((n, self.context), dtype=np.int64), np.zeros(n, dtype=np.int64)
        for t in range(self.context):
            must_close = (height == self.depth) | (height == self.context - t)
            opens = ~must_close & ((height == 0) | (dice.random(n) < 0.5))
            fresh = dice.integers(1, self.kinds + 1, n)
            top = stack[rows, np.maximum(height - 1, 0)]
            word[:, t] = np.where(opens, fresh, top + self.kinds)
            stack[rows, height] = np.where(opens, fresh, stack[rows, height])
            height += np.where(opens, 1, -1)
        closes = word > self.kinds
        return Problems(word[:, :-1], word[:, 1:], closes[:, 1:])


@dataclass(frozen=True)
class ParityTask(TaskConfig):
    """Bits, written 1 and 2; at each tell whether the number of ones so far is odd (2) or even (1)."""

    kind: ClassVar[str] = "parity"
    context: Count = 40

    @property
    def vocab_size(self) -> int:
        return 3

    @property
    def length(self) -> int:
        return self.context

    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        bits = dice.integers(0, 2, (n, self.context))
        return Problems(bits + 1, bits.cumsum(1) % 2 + 1, np.ones(bits.shape, dtype=np.bool_))


OPERATIONS: Mapping[str, Callable[[Symbols, Symbols, int], Symbols]] = MappingProxyType(
    {
        "add": lambda a, b, p: (a + b) % p,
        "subtract": lambda a, b, p: (a - b) % p,
        "multiply": lambda a, b, p: (a * b) % p,
        "divide": lambda a, b, p: a * _inverse(b, p) % p,
    }
)


@dataclass(frozen=True)
class ModularTask(TaskConfig):
    """a ∘ b = c modulo a prime, learned from a share of the table: the task of grokking (arXiv 2201.02177 §3.1).

    A problem is `a ∘ b =` and asks for c at the last place. Numbers are 1 … p (for 0 … p − 1), ∘ and = the two symbols
    after them. Of division, b = 0 is left out. Training sees `train_share` of the table, validation the rest.
    """

    kind: ClassVar[str] = "modular"
    operation: Literal["add", "subtract", "multiply", "divide"] = "divide"
    modulus: Annotated[int, Ge(2)] = 97
    train_share: Annotated[float, Gt(0), Lt(1)] = 0.5

    def __post_init__(self) -> None:
        if any(self.modulus % n == 0 for n in range(2, int(self.modulus**0.5) + 1)):
            raise DataError(f"task.modulus must be a prime, got {self.modulus}; 97 is the paper's")

    @property
    def vocab_size(self) -> int:
        return self.modulus + 3

    @property
    def length(self) -> int:
        return 4

    def draw(self, dice: np.random.Generator, n: int) -> Problems:
        table = self.every()
        rows = dice.integers(0, len(table), n)
        return Problems(table.tokens[rows], table.labels[rows], table.asked[rows])

    def every(self) -> Problems:
        p = self.modulus
        first = int(self.operation == "divide")
        a, b = (grid.reshape(-1) for grid in np.meshgrid(np.arange(p), np.arange(first, p), indexing="ij"))
        c = OPERATIONS[self.operation](a, b, p)
        signs = [np.full_like(a, p + 1), np.full_like(a, p + 2)]
        tokens = np.stack([a + 1, signs[0], b + 1, signs[1]], axis=1)
        labels, asked = np.zeros_like(tokens), np.zeros(tokens.shape, dtype=np.bool_)
        labels[:, 3], asked[:, 3] = c + 1, True
        return Problems(tokens, labels, asked)


def _inverse(b: Symbols, p: int) -> Symbols:
    """b^(p − 2) modulo the prime p, which is 1/b."""
    return np.array([pow(int(value), p - 2, p) for value in b], dtype=np.int64)
