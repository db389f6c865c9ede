"""Text with spans cut out, which are to be written (T5, arXiv 1910.10683 §3.1.4 and §3.3.4, figure 2).

    text      Thank you for inviting me to your party last week
    source    Thank you ⟨s₀⟩ me to your party ⟨s₁⟩ week ⟨eos⟩
    target    ⟨s₀⟩ for inviting ⟨s₁⟩ last ⟨s₂⟩ ⟨eos⟩

15 % of the tokens are cut out, in spans of 3 on average. Of a window of L tokens that is n = round(0.15·L) tokens in
k = round(n / 3) spans, the same numbers in every window, so that all sources are as long as each other, and all
targets. Each span leaves a sentinel in its place; the target has each sentinel, the span it stands for, and one more
sentinel at the end, as in the paper's figure. Sentinels are the highest ids of the vocabulary, counted downwards: the
first is the last id. Both sequences end in eos, and the decoder begins with the padding token, as in the released code.

Lengths and places of the spans are drawn anew for each row and step: all ways to cut k spans with a token between two
of them are equally likely. The released code always cuts out the window's last tokens and never its first, and needs
no last sentinel then. The tokens it reads 512 at a time are those of the source; here a window is so many of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Int
from torch import Tensor

from ..utils.rng import derive_seed
from .errors import DataError
from .masked import TextSource
from .pairs import PairBatch
from .tokenizer import Tokenizer
from .windows import TextEvaluation

SENTINELS = tuple(f"⟨sentinel {number}⟩" for number in reversed(range(100)))
"""The names of T5's 100 sentinels in the order of their ids: the first one used is the last."""


def sentinels_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of a tokenizer's sentinels in the order of their use. DataError for one that has none."""
    return tuple(tokenizer.special(name) for name in reversed(SENTINELS))


@dataclass(frozen=True)
class SpanCorruption:
    """How spans are cut out. sentinels: in the order of their use; start: what the decoder begins with.

    share: of a window's tokens that are cut out, at least one; mean_span: how many of them are a span, on average.
    """

    sentinels: tuple[int, ...]
    start: int
    eos: int
    share: Annotated[float, Gt(0), Lt(1)] = 0.15
    mean_span: Annotated[float, Ge(1)] = 3.0

    def sizes(self, length: int) -> tuple[int, int]:
        """Return how many tokens of a window of `length` are cut out, and in how many spans."""
        n_hidden = max(1, min(round(length * self.share), length - 1))
        n_spans = min(max(1, round(n_hidden / self.mean_span)), n_hidden, length - n_hidden + 1)
        return n_hidden, n_spans

    def widths(self, length: int) -> tuple[int, int]:
        """Return how long the sources and targets of windows of `length` are; targets with the start token."""
        n_hidden, n_spans = self.sizes(length)
        return length - n_hidden + n_spans + 1, 1 + n_hidden + n_spans + 2

    def corrupt(self, tokens: Int[Tensor, "b t"], seed: int, step: int) -> PairBatch:
        """Return sources and targets with the spans that (seed, step) choose; DataError for too few sentinels."""
        rows, length = tokens.shape
        n_spans = self.sizes(length)[1]
        if n_spans >= len(self.sentinels):
            raise DataError(
                f"a window of {length} tokens has {n_spans} spans, which need {n_spans + 1} sentinels, and there are "
                f"{len(self.sentinels)}; lower data.context or raise mean_span"
            )
        piece = self._pieces(rows, length, torch.Generator().manual_seed(derive_seed(seed, "spans", step)))
        hidden = piece % 2 == 1
        begins = hidden & (piece != torch.cat([torch.zeros_like(piece[:, :1]), piece[:, :-1]], dim=1))
        sentinel = torch.tensor(self.sentinels)[piece // 2]
        source = torch.where(hidden, sentinel, tokens)[~hidden | begins].view(rows, -1)
        pairs, wanted = torch.stack([sentinel, tokens], dim=2), torch.stack([begins, hidden], dim=2)
        target = pairs[wanted].view(rows, -1)
        edge = tokens.new_ones(rows, 1)
        source = torch.cat([source, edge * self.eos], dim=1)
        target = torch.cat(
            [edge * self.start, target, edge * self.sentinels[n_spans], edge * self.eos], dim=1
        )
        real = [torch.ones_like(x, dtype=torch.bool) for x in (source, target)]
        return PairBatch(source, real[0], target, real[1])

    def _pieces(self, rows: int, length: int, dice: torch.Generator) -> Int[Tensor, "b t"]:
        """Number the pieces of each window from 0; the even ones, of which the outer may be empty, are kept."""
        n_hidden, n_spans = self.sizes(length)
        spans = _composition(rows, n_hidden, n_spans, dice)
        kept = _composition(
            rows, length - n_hidden + 2, n_spans + 1, dice
        )  # with a token to spare at either end
        kept[:, 0] -= 1
        kept[:, -1] -= 1
        sizes = torch.zeros(rows, 2 * n_spans + 1, dtype=torch.long)
        sizes[:, 0::2], sizes[:, 1::2] = kept, spans
        index = torch.arange(length).expand(rows, -1).contiguous()
        return torch.searchsorted(sizes.cumsum(1), index, right=True)


def _composition(rows: int, total: int, parts: int, dice: torch.Generator) -> Int[Tensor, "b _"]:
    """Cut `total` into so many positive parts, all ways being equally likely; one way for each row."""
    draws = torch.rand(rows, total - 1, generator=dice, dtype=torch.float64)
    cuts = draws.argsort(1)[:, : parts - 1].sort(1).values + 1
    ends = torch.cat([torch.zeros(rows, 1, dtype=torch.long), cuts, torch.full((rows, 1), total)], dim=1)
    return ends.diff(dim=1)


def restore(source: Sequence[int], target: Sequence[int], sentinels: Sequence[int], eos: int) -> list[int]:
    """Return the text of a source and the spans that a target has for it.

    What stands before the target's first sentinel, and in either after the last eos, is passed over. A sentinel
    without a span, or one that the source has not, adds nothing: a model may write anything.
    """
    spans, text = spans_of(target, sentinels, eos), _before_last(source, eos)
    return [token for entry in text for token in (spans.get(entry, []) if entry in sentinels else [entry])]


def spans_of(target: Sequence[int], sentinels: Sequence[int], eos: int) -> dict[int, list[int]]:
    """Return the tokens that a target has for each of its sentinels."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in _before_last(target, eos):
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return spans


def _before_last(tokens: Sequence[int], eos: int) -> Sequence[int]:
    """The tokens before the last eos; all of them where there is none."""
    return tokens[: len(tokens) - 1 - tokens[::-1].index(eos)] if eos in tokens else tokens


class SpanStream:
    """Windows of text with spans cut out, as a function of (seed, step).

    Of a window of one token more than the context the first is left out.
    """

    def __init__(self, windows: TextSource, corruption: SpanCorruption, *, seed: int) -> None:
        self._windows, self._corruption, self._seed = windows, corruption, seed

    def batch(self, step: int, part: int = 0, parts: int = 1) -> PairBatch:
        """Return the batch of `step` (from 0), or its `part` of `parts`, cut as the whole batch is cut."""
        if not 0 <= part < parts:
            raise ValueError(f"expected 0 <= part < parts, got part {part}/{parts}")
        whole = self._corruption.corrupt(self._windows.batch(step).tokens[:, 1:], self._seed, step)
        n_rows = len(whole.source)
        rows = slice(n_rows * part // parts, n_rows * (part + 1) // parts)
        return PairBatch(*(getattr(whole, entry.name)[rows] for entry in fields(whole)))


class SpanEvaluation:
    """Every window of a split once, with spans cut out.

    What is cut out of a window depends on the window's number alone, and so neither on the seed of a run nor on how
    the split is cut into batches. Only the text's first token is in no window.
    """

    def __init__(self, windows: TextEvaluation, corruption: SpanCorruption) -> None:
        self._windows, self._corruption = windows, corruption

    def batches(self) -> Iterator[PairBatch]:
        """Yield the batches."""
        number = 0
        for window in self._windows.batches():
            rows = []
            for row in torch.split(window.tokens[:, 1:], 1):
                rows.append(self._corruption.corrupt(row, 0, number))
                number += 1
            parts = ([getattr(row, entry.name) for row in rows] for entry in fields(PairBatch))
            yield PairBatch(*map(torch.cat, parts))
