"""The objective of T5's pre-training (arXiv 1910.10683 §3.1.4): write the spans that were cut out of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from torch import nn

from ..data import PairBatch, Tokenizer
from ..data.span_corruption import SpanCorruption, sentinels_of
from .objective import LossSum, ObjectiveConfig, SequenceToSequence


@dataclass(frozen=True)
class SpanDenoising(ObjectiveConfig):
    """Predict each token of the target, sentinels and eos included, from the source and those before it.

    share: of the tokens, that are cut out; mean_span: how many of them are a span, on average. No label smoothing.
    """

    kind: ClassVar[str] = "span_corruption"
    share: Annotated[float, Gt(0), Lt(1)] = 0.15
    mean_span: Annotated[float, Ge(1)] = 3.0

    def corruption(self, tokenizer: Tokenizer) -> SpanCorruption:
        """Return how the text of this tokenizer, which must have sentinels, is cut."""
        return SpanCorruption(
            sentinels_of(tokenizer), tokenizer.pad, tokenizer.eos, self.share, self.mean_span
        )

    def blank(self, rows: int, length: int, source_length: int = 0) -> PairBatch:
        return SequenceToSequence(0.0).blank(rows, length, source_length)

    def count(self, batch: PairBatch) -> int:
        return SequenceToSequence(0.0).count(batch)

    def __call__(self, model: nn.Module, batch: PairBatch) -> LossSum:
        return SequenceToSequence(0.0)(model, batch)
