"""How well a model tells hidden tokens from those around them, over a whole split.

Exact in the same sense as a likelihood of text: what is hidden in a window depends on the window's number alone, so
that two evaluations ask the same, however the split is cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from torch.nn import functional as F

from ..data import MaskedBatch
from ..generation import evaluating
from .perplexity import Likelihood
from .suite import Report


@dataclass(frozen=True)
class MaskedLikelihood(Likelihood):
    """The negative log-likelihood of hidden tokens. n_right: of how many the model's first guess is right."""

    n_right: int

    @property
    def accuracy(self) -> float:
        """The share of hidden tokens that are guessed."""
        return self.n_right / self.n_tokens


def evaluate_masked(model: nn.Module, batches: Iterable[MaskedBatch]) -> MaskedLikelihood:
    """Return the likelihood of all hidden tokens, given those around them."""
    encoder: Any = model
    device = next(model.parameters()).device
    nll, n_tokens, n_right = 0.0, 0, 0
    for batch in batches:
        moved = MaskedBatch(*(getattr(batch, field.name).to(device) for field in fields(batch)))
        with evaluating(model):
            hidden = encoder.encode(moved.tokens, attention_mask=moved.real)
            logits = encoder.lm_head(hidden[moved.chosen][None])[0].float()
        labels = moved.labels[moved.chosen]
        nll += float(F.cross_entropy(logits, labels, reduction="sum"))
        n_right += int((logits.argmax(-1) == labels).sum())
        n_tokens += len(labels)
    return MaskedLikelihood(nll, n_tokens, n_right)


def report_masked(model: nn.Module, batches: Iterable[MaskedBatch], split: str) -> Report:
    """Return the likelihood of a split's hidden tokens and how many are guessed."""
    found = evaluate_masked(model, batches)
    return Report(
        {
            f"{split}/nll": found.nats_per_token,
            f"{split}/perplexity": found.perplexity,
            f"{split}/accuracy": found.accuracy,
        },
        {"hidden tokens": f"{found.n_tokens:,}, the same at every evaluation"},
    )
