"""Batches of sentence pairs of similar length, filled up to a budget of tokens (arXiv 1706.03762, §5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..utils.rng import derive_seed
from .arrays import IntArray
from .errors import DataError
from .order import Indices, Permutation


@dataclass(frozen=True)
class PairBatch:
    """Token ids, padded on the right; the masks are true where a token is real.

    `source` ends with eos. `target` begins with bos and ends with eos: the decoder reads `target[:, :-1]`
    and predicts `target[:, 1:]`.
    """

    source: Int[Tensor, "b s"]
    source_mask: Bool[Tensor, "b s"]
    target: Int[Tensor, "b t"]
    target_mask: Bool[Tensor, "b t"]


@dataclass(frozen=True)
class Sentences:
    """Sentences without special tokens, end to end: number i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: IntArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> list[int]:
        first, last = self.offsets[index], self.offsets[index + 1]
        tokens: list[int] = self.tokens[first:last].tolist()
        return tokens

    @property
    def lengths(self) -> Indices:
        """Tokens in each sentence."""
        offsets = self.offsets.astype(np.int64)
        return offsets[1:] - offsets[:-1]

    def padded(
        self, rows: Indices, *, pad: int, eos: int, bos: int | None = None
    ) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Return the sentences `rows` as a rectangle with eos (and bos) added, and where it is real."""
        first = self.offsets[rows].astype(np.int64)[:, None]
        lengths = self.offsets[rows + 1].astype(np.int64)[:, None] - first
        column = np.arange(lengths.max(initial=0))
        inside = column < lengths
        lead = 0 if bos is None else 1
        out = np.full((len(rows), lead + len(column) + 1), pad, dtype=np.int64)
        out[:, lead:-1][inside] = self.tokens[(first + column)[inside]]
        if bos is not None:
            out[:, 0] = bos
        np.put_along_axis(out, lead + lengths, eos, axis=1)
        return out, np.arange(out.shape[1]) < lead + lengths + 1


@dataclass(frozen=True)
class Pairs:
    """The sentence pairs of one split, with the ids of the special tokens."""

    source: Sentences
    target: Sentences
    pad: int
    bos: int
    eos: int

    def widths(self) -> tuple[Indices, Indices]:
        """Return each pair's number of columns in a batch: source + eos, and bos + target + eos."""
        return self.source.lengths + 1, self.target.lengths + 2

    def batch(self, rows: Indices) -> PairBatch:
        """Return the pairs `rows` as one batch."""
        source, source_mask = self.source.padded(rows, pad=self.pad, eos=self.eos)
        target, target_mask = self.target.padded(rows, pad=self.pad, eos=self.eos, bos=self.bos)
        return PairBatch(*map(torch.from_numpy, (source, source_mask, target, target_mask)))


def cut_by_tokens(source: Indices, target: Indices, batch_tokens: int) -> Indices:
    """Return the limits of consecutive batches: batch i is rows limits[i] to limits[i + 1].

    Each is as long as `rows x (widest source + widest target) <= batch_tokens` allows, and never empty.
    `source` must not decrease.
    """
    limits = [0]
    while (first := limits[-1]) < len(source):
        most = max(1, batch_tokens // int(source[first] + 1))
        width = source[first : first + most] + np.maximum.accumulate(target[first : first + most])
        cost = width * np.arange(1, len(width) + 1)
        limits.append(first + max(1, int(np.searchsorted(cost, batch_tokens, side="right"))))
    return np.array(limits, dtype=np.int64)


class PairStream:
    """Training batches as a function of (seed, step).

    Pairs are sorted by (source, target) length and cut at `batch_tokens` padded tokens. The cuts depend on
    the lengths alone, so every epoch has the same number of batches and step → (epoch, batch) is arithmetic.
    Each epoch permutes the pairs of equal lengths and the order of the batches. Pairs wider than `max_length`
    tokens on a side, special tokens included, are left out (`n_skipped`).
    """

    def __init__(self, pairs: Pairs, *, batch_tokens: int, max_length: int, seed: int) -> None:
        self._pairs, self._seed = pairs, seed
        source, target = pairs.widths()
        kept = np.flatnonzero((source <= max_length) & (target <= max_length))
        self.n_skipped = len(source) - len(kept)
        if not len(kept):
            raise DataError(f"no training pair has at most {max_length} tokens a side; raise data.max_length")
        widest = int((source + target)[kept].max())
        if widest > batch_tokens:
            raise DataError(
                f"data.batch_tokens {batch_tokens} cannot hold the widest pair of {widest} tokens; "
                f"raise it to at least {widest} or lower data.max_length from {max_length}"
            )
        self._sorted = kept[np.lexsort((target[kept], source[kept]))]
        source, target = source[self._sorted], target[self._sorted]
        self._limits = cut_by_tokens(source, target, batch_tokens)
        new_group = (np.diff(source) != 0) | (np.diff(target) != 0)
        self._group = np.concatenate(([0], np.cumsum(new_group)))
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def batches_per_epoch(self) -> int:
        """How many steps go once through the data."""
        return len(self._limits) - 1

    def batch(self, step: int, part: int = 0, parts: int = 1) -> PairBatch:
        """Return the batch of `step` (from 0), or its `part` of `parts` for gradient accumulation.

        The parts hold each row of the batch exactly once; some have no rows when parts outnumber the rows.
        """
        if not 0 <= part < parts or step < 0:
            raise ValueError(
                f"expected 0 <= step and 0 <= part < parts, got step {step}, part {part}/{parts}"
            )
        epoch, index = divmod(step, self.batches_per_epoch)
        rows, order = self._plan(epoch)
        first, last = self._limits[order[index]], self._limits[order[index] + 1]
        size = last - first
        return self._pairs.batch(rows[first + size * part // parts : first + size * (part + 1) // parts])

    def _make_plan(self, epoch: int) -> tuple[Indices, Indices]:
        """Return the epoch's order of the pairs, and of the batches cut from it."""
        shuffled = Permutation(len(self._sorted), derive_seed(self._seed, "pairs", epoch)).all()
        rows = self._sorted[shuffled[np.argsort(self._group[shuffled], kind="stable")]]
        return rows, Permutation(self.batches_per_epoch, derive_seed(self._seed, "batches", epoch)).all()


class PairEvaluation:
    """Every pair of a split exactly once, short ones first; none is left out for its length."""

    def __init__(self, pairs: Pairs, *, batch_tokens: int) -> None:
        self._pairs = pairs
        source, target = pairs.widths()
        self._rows = np.lexsort((target, source))
        self._limits = cut_by_tokens(source[self._rows], target[self._rows], batch_tokens)

    def __len__(self) -> int:
        return len(self._limits) - 1

    def batches(self) -> Iterator[PairBatch]:
        """Yield the batches."""
        for first, last in zip(self._limits[:-1], self._limits[1:], strict=True):
            yield self._pairs.batch(self._rows[first:last])
