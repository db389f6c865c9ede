"""Batches of labelled texts, those of a batch being of similar length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..utils.rng import derive_seed
from .order import Indices, Permutation
from .pairs import Sentences

BATCHES_IN_A_POOL = 50


@dataclass(frozen=True)
class LabelledBatch:
    """Texts with their classes.

    tokens: bos, the text and eos, padded on the right. real: False at padding. labels: the class of each row.
    """

    tokens: Int[Tensor, "b t"]
    real: Bool[Tensor, "b t"]
    labels: Int[Tensor, " b"]


@dataclass(frozen=True)
class Examples:
    """The examples of one split, with the ids of the special tokens; max_length: of a row, bos and eos included."""

    texts: Sentences
    labels: Indices
    max_length: int
    pad: int
    bos: int
    eos: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def widths(self) -> Indices:
        """The columns that each example takes."""
        return np.minimum(self.texts.lengths + 2, self.max_length)

    def batch(self, rows: Indices) -> LabelledBatch:
        """Return the examples `rows` as one batch; a text that is too long loses its end."""
        tokens, real = self.texts.padded(rows, pad=self.pad, eos=self.eos, bos=self.bos)
        if tokens.shape[1] > self.max_length:
            tokens, real = tokens[:, : self.max_length].copy(), real[:, : self.max_length].copy()
            tokens[real[:, -1], -1] = self.eos
        return LabelledBatch(*map(torch.from_numpy, (tokens, real, self.labels[rows])))


class LabelledStream:
    """Training batches as a function of (seed, step).

    Each epoch permutes the examples, sorts every pool of 50 batches by length, cuts it into batches and permutes those.
    An epoch holds each example once; its last batch may be smaller.
    """

    def __init__(self, examples: Examples, *, batch_size: int, seed: int) -> None:
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._widths = examples.widths
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def batches_per_epoch(self) -> int:
        """How many steps go once through the data."""
        return -(-len(self._examples) // self._batch_size)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> LabelledBatch:
        """Return the batch of `step` (from 0), or its `part` of `parts` for gradient accumulation."""
        if not 0 <= part < parts or step < 0:
            raise ValueError(
                f"expected 0 <= step and 0 <= part < parts, got step {step}, part {part}/{parts}"
            )
        epoch, index = divmod(step, self.batches_per_epoch)
        rows, order = self._plan(epoch)
        first = int(order[index]) * self._batch_size
        size = min(self._batch_size, len(rows) - first)
        return self._examples.batch(rows[first + size * part // parts : first + size * (part + 1) // parts])

    def _make_plan(self, epoch: int) -> tuple[Indices, Indices]:
        """Return the epoch's order of the examples, and of the batches cut from it."""
        rows = Permutation(len(self._examples), derive_seed(self._seed, "examples", epoch)).all()
        pool = np.arange(len(rows)) // (self._batch_size * BATCHES_IN_A_POOL)
        rows = rows[np.lexsort((self._widths[rows], pool))]
        return rows, Permutation(self.batches_per_epoch, derive_seed(self._seed, "batches", epoch)).all()


class LabelledEvaluation:
    """Every example of a split exactly once, short ones first."""

    def __init__(self, examples: Examples, *, batch_size: int) -> None:
        self._examples, self._batch_size = examples, batch_size
        self.rows = np.argsort(examples.widths, kind="stable")

    def __len__(self) -> int:
        return -(-len(self.rows) // self._batch_size)

    def batches(self) -> Iterator[LabelledBatch]:
        """Yield the batches; together they hold the examples in the order of `rows`."""
        for first in range(0, len(self.rows), self._batch_size):
            yield self._examples.batch(self.rows[first : first + self._batch_size])
