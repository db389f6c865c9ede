"""Batches of fixed-length windows of one long text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..utils.rng import derive_seed
from .arrays import IntArray
from .errors import DataError
from .order import Indices, Permutation


@dataclass(frozen=True)
class TextBatch:
    """Windows of one token more than the context: inputs `tokens[:, :-1]`, labels `tokens[:, 1:]`."""

    tokens: Int[Tensor, "b t"]


def _gather(tokens: IntArray, starts: Indices, width: int) -> TextBatch:
    windows = tokens[starts[:, None] + np.arange(width)]
    return TextBatch(torch.from_numpy(windows.astype(np.int64)))


class TextStream:
    """Training windows as a function of (seed, step).

    An epoch lays contiguous windows over the text, from an offset of its own on, and visits each once in a
    shuffled order. Their number is the same in every epoch, so example → (epoch, window) is arithmetic. No
    label comes twice in an epoch; fewer than two windows' worth of labels, at the two ends of the text, are
    left out of it, others in the next.
    """

    def __init__(self, tokens: IntArray, *, context: int, batch_size: int, seed: int) -> None:
        if context < 1 or batch_size < 1:
            raise ValueError(f"context and batch_size must be at least 1, got {context} and {batch_size}")
        if len(tokens) < context + 1:
            raise DataError(
                f"the training text has {len(tokens)} tokens, but a window of data.context {context} needs "
                f"{context + 1}; lower data.context or give more text"
            )
        self._tokens, self._context, self._batch_size, self._seed = tokens, context, batch_size, seed
        self.windows_per_epoch = max(1, (len(tokens) - context) // context)
        self._slack = len(tokens) - 1 - self.windows_per_epoch * context

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TextBatch:
        """Return the batch of `step` (from 0), or its `part` of `parts` for gradient accumulation."""
        if not 0 <= part < parts or step < 0:
            raise ValueError(
                f"expected 0 <= step and 0 <= part < parts, got step {step}, part {part}/{parts}"
            )
        size = self._batch_size
        first, last = size * part // parts, size * (part + 1) // parts
        examples = step * size + np.arange(first, last)
        return _gather(self._tokens, self._starts(examples), self._context + 1)

    def _starts(self, examples: Indices) -> Indices:
        epochs, positions = np.divmod(examples, self.windows_per_epoch)
        starts = np.empty_like(examples)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            shuffle = Permutation(self.windows_per_epoch, derive_seed(self._seed, "windows", epoch))
            offset = derive_seed(self._seed, "offset", epoch) % (self._slack + 1)
            starts[chosen] = offset + shuffle(positions[chosen]) * self._context
        return starts


class TextEvaluation:
    """Every token of a split but the first predicted exactly once, in contiguous windows.

    The last window is as short as the text leaves it and comes in a batch of its own. `n_bytes` counts the
    raw bytes of the predicted tokens: bits per byte = total loss in nats / ln 2 / `n_bytes`.
    """

    def __init__(self, tokens: IntArray, *, context: int, batch_size: int, n_bytes: int) -> None:
        if len(tokens) < 2:
            raise DataError(f"a text of {len(tokens)} token has nothing to predict; give more text")
        self._tokens, self._context, self._batch_size, self.n_bytes = tokens, context, batch_size, n_bytes

    @property
    def n_tokens(self) -> int:
        """How many tokens are predicted."""
        return len(self._tokens) - 1

    def __len__(self) -> int:
        whole, rest = divmod(self.n_tokens, self._context)
        return -(-whole // self._batch_size) + (rest > 0)

    def batches(self) -> Iterator[TextBatch]:
        """Yield the batches."""
        whole, rest = divmod(self.n_tokens, self._context)
        for first in range(0, whole, self._batch_size):
            rows = np.arange(first, min(first + self._batch_size, whole))
            yield _gather(self._tokens, rows * self._context, self._context + 1)
        if rest:
            yield _gather(self._tokens, np.array([whole * self._context]), rest + 1)
