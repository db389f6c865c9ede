"""Text with some tokens hidden, to be told from those around them (BERT, arXiv 1810.04805 §3.1 and appendix A.1).

Of the ordinary tokens of a row a share is chosen: 15 %, at least one. Of the chosen ones 80 % become the mask token,
10 % another token at random and 10 % stay, so that a model cannot tell from the input alone which are asked for. The
choice is made anew at each step (RoBERTa, arXiv 1907.11692 §4.1), as a function of (seed, step).

BERT chooses whole words in a later release, and draws its random tokens from the whole vocabulary; here words are not
known and special tokens are never drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Int
from torch import Tensor

from ..utils.rng import derive_seed
from .windows import TextBatch, TextEvaluation


@dataclass(frozen=True)
class MaskedBatch:
    """Tokens of which some are hidden.

    tokens: what the model reads. labels: what was there. chosen: where it is asked. real: False at padding.
    """

    tokens: Int[Tensor, "b t"]
    labels: Int[Tensor, "b t"]
    chosen: Bool[Tensor, "b t"]
    real: Bool[Tensor, "b t"]


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden. mask: the mask token; special: tokens that are never chosen and never drawn.

    share: of the ordinary tokens of a row that are chosen; masked, random: of the chosen ones that become the mask
    token, or any ordinary one; the rest stay as they are.
    """

    vocab_size: Annotated[int, Ge(1)]
    mask: Annotated[int, Ge(0)]
    special: tuple[int, ...] = ()
    share: Annotated[float, Gt(0), Le(1)] = 0.15
    masked: Annotated[float, Ge(0), Le(1)] = 0.8
    random: Annotated[float, Ge(0), Le(1)] = 0.1

    def __post_init__(self) -> None:
        if outside := [i for i in (self.mask, *self.special) if not 0 <= i < self.vocab_size]:
            raise ValueError(f"the token {outside[0]} is not in the vocabulary, 0 to {self.vocab_size - 1}")
        if self.masked + self.random > 1 + 1e-9:
            raise ValueError(
                f"masked {self.masked} and random {self.random} are shares of the same tokens; "
                "their sum must not be more than 1"
            )
        if not self.ordinary:
            raise ValueError(f"all {self.vocab_size} tokens are special; there is none to predict")

    @property
    def ordinary(self) -> list[int]:
        """The tokens that may be chosen and drawn."""
        return sorted(set(range(self.vocab_size)) - {self.mask, *self.special})

    def hide(
        self, tokens: Int[Tensor, "b t"], real: Bool[Tensor, "b t"], seed: int, step: int
    ) -> MaskedBatch:
        """Return the tokens with those hidden that (seed, step) choose."""
        dice = torch.Generator().manual_seed(derive_seed(seed, "masking", step))
        ordinary = torch.tensor(self.ordinary)
        eligible = real & torch.isin(tokens, ordinary)
        wanted = (
            (eligible.sum(1) * self.share).round().clamp(min=1)
        )  # a row without ordinary tokens has none to give
        draw = torch.rand(tokens.shape, generator=dice, dtype=torch.float64).masked_fill(~eligible, 2.0)
        chosen = eligible & (draw.argsort(1).argsort(1) < wanted[:, None])
        fate = torch.rand(tokens.shape, generator=dice, dtype=torch.float64)
        others = ordinary[torch.randint(len(ordinary), tokens.shape, generator=dice)]
        hidden = torch.where(chosen & (fate < self.masked), self.mask, tokens)
        swapped = chosen & (fate >= self.masked) & (fate < self.masked + self.random)
        return MaskedBatch(torch.where(swapped, others, hidden), tokens, chosen, real)


@runtime_checkable
class TextSource(Protocol):
    """Windows of text as a function of the step."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TextBatch: ...


def framed(tokens: Int[Tensor, "b t"], bos: int, eos: int) -> Int[Tensor, "b _"]:
    """Return each row between bos and eos, which stand for BERT's [CLS] and [SEP]."""
    edge = tokens.new_ones(len(tokens), 1)
    return torch.cat([edge * bos, tokens, edge * eos], dim=1)


class MaskedStream:
    """Windows of text with tokens hidden, as a function of (seed, step).

    Of a window of one token more than the context the first is left out, so that inputs are as long as the context.
    frame: bos and eos to put around them, null for none.
    """

    def __init__(
        self, windows: TextSource, masking: Masking, *, seed: int, frame: tuple[int, int] | None = None
    ) -> None:
        self._windows, self._masking, self._seed, self._frame = windows, masking, seed, frame

    def batch(self, step: int, part: int = 0, parts: int = 1) -> MaskedBatch:
        """Return the batch of `step` (from 0), or its `part` of `parts`, which hide what the whole batch hides."""
        if not 0 <= part < parts:
            raise ValueError(f"expected 0 <= part < parts, got part {part}/{parts}")
        tokens = self._windows.batch(step).tokens[:, 1:]
        tokens = tokens if self._frame is None else framed(tokens, *self._frame)
        whole = self._masking.hide(tokens, torch.ones_like(tokens, dtype=torch.bool), self._seed, step)
        rows = slice(len(tokens) * part // parts, len(tokens) * (part + 1) // parts)
        return MaskedBatch(*(getattr(whole, entry.name)[rows] for entry in fields(whole)))


class MaskedEvaluation:
    """Every window of a split once, between bos and eos, with tokens hidden.

    What is hidden in a window depends on the window's number alone, and so neither on the seed of a run nor on how the
    split is cut into batches. Only the text's first token is in no window.
    """

    def __init__(self, windows: TextEvaluation, masking: Masking, *, frame: tuple[int, int]) -> None:
        self._windows, self._masking, self._frame = windows, masking, frame

    def batches(self) -> Iterator[MaskedBatch]:
        """Yield the batches."""
        number = 0
        for window in self._windows.batches():
            rows = []
            framed_rows = framed(window.tokens[:, 1:], *self._frame)
            for row in torch.split(framed_rows, 1):
                rows.append(self._masking.hide(row, torch.ones_like(row, dtype=torch.bool), 0, number))
                number += 1
            parts = ([getattr(row, entry.name) for row in rows] for entry in fields(MaskedBatch))
            yield MaskedBatch(*map(torch.cat, parts))
