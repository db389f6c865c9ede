"""How well a model predicts a whole split: nats per token, perplexity, bits per byte.

Exact: every token counts once, in eval mode, without label smoothing, and sums are those of the whole split,
not means of means, so that the result does not depend on how the split is cut into batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

from torch import nn

from ..data import PairBatch, PairEvaluation, TextBatch, TextEvaluation
from ..data.span_corruption import SpanEvaluation
from ..generation import evaluating
from ..training.objective import Causal, Objective, SequenceToSequence

B = TypeVar("B", PairBatch, TextBatch)


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of a split. nll: in nats, of all tokens together; n_tokens: how many."""

    nll: float
    n_tokens: int

    @property
    def nats_per_token(self) -> float:
        """The cross-entropy, in nats."""
        return self.nll / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite beyond the largest float."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class TextLikelihood(Likelihood):
    """The negative log-likelihood of running text. n_bytes: the UTF-8 bytes of the predicted tokens."""

    n_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """The cross-entropy per byte of the text, in bits: comparable between tokenizers."""
        return self.nll / math.log(2) / self.n_bytes


def evaluate_pairs(model: nn.Module, evaluation: PairEvaluation | SpanEvaluation) -> Likelihood:
    """Return the likelihood of every target token of a split, `eos` included, given source and prefix."""
    return Likelihood(*_sums(model, SequenceToSequence(label_smoothing=0.0), evaluation.batches()))


def evaluate_text(model: nn.Module, evaluation: TextEvaluation) -> TextLikelihood:
    """Return the likelihood of every token of a split but its first, given those before it in its window."""
    return TextLikelihood(*_sums(model, Causal(), evaluation.batches()), evaluation.n_bytes)


def _sums(model: nn.Module, objective: Objective[B], batches: Iterable[B]) -> tuple[float, int]:
    """Return the negative log-likelihood of all batches, and their number of tokens."""
    device, nll, n_tokens = next(model.parameters()).device, 0.0, 0
    for batch in batches:
        moved = type(batch)(*(getattr(batch, field.name).to(device) for field in fields(batch)))
        with evaluating(model):
            loss = objective(model, moved)
        nll, n_tokens = nll + float(loss.nll), n_tokens + loss.count
    return nll, n_tokens
