"""How often a classifier is right, over a whole split.

    accuracy = right / all
    F1 of a class = 2·tp / (2·tp + fp + fn),   macro-F1 = the mean over classes

A class that is neither in the split nor ever predicted has an F1 of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from ..data import LabelledCorpus, LabelledEvaluation
from ..generation import evaluating
from .suite import Example, Report


@dataclass(frozen=True)
class ClassificationScore:
    """nats: the mean loss of an example. predictions: the class of each example, in the order of the file."""

    nats: float
    accuracy: float
    macro_f1: float
    predictions: npt.NDArray[np.int64]


def score_predictions(
    predictions: Sequence[int] | npt.NDArray[np.int64],
    labels: Sequence[int] | npt.NDArray[np.int64],
    n_classes: int,
) -> tuple[float, float]:
    """Return (accuracy, macro-F1)."""
    given, wanted = np.asarray(predictions), np.asarray(labels)
    right = np.bincount(given[given == wanted], minlength=n_classes)
    both = np.bincount(given, minlength=n_classes) + np.bincount(wanted, minlength=n_classes)
    return float((given == wanted).mean()), float((2 * right / np.maximum(both, 1)).mean())


def evaluate_classes(model: nn.Module, evaluation: LabelledEvaluation, n_classes: int) -> ClassificationScore:
    """Return loss, accuracy and macro-F1 of all examples of a split."""
    device, nll, scores, labels = next(model.parameters()).device, 0.0, [], []
    for batch in evaluation.batches():
        with evaluating(model):
            logits = model(batch.tokens.to(device), attention_mask=batch.real.to(device)).float().cpu()
        nll += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        scores.append(logits.argmax(-1))
        labels.append(batch.labels)
    given, wanted = torch.cat(scores).numpy(), torch.cat(labels).numpy()
    accuracy, macro_f1 = score_predictions(given, wanted, n_classes)
    predictions = np.empty_like(given)
    predictions[evaluation.rows] = given
    return ClassificationScore(nll / len(given), accuracy, macro_f1, predictions)


def report_classes(model: nn.Module, corpus: LabelledCorpus, split: str, *, samples: int = 5) -> Report:
    """Return loss, accuracy and macro-F1 of a split, and `samples` examples spread evenly over it."""
    score = evaluate_classes(model, corpus.evaluation(split), len(corpus.classes))
    figures = {
        f"{split}/accuracy": score.accuracy,
        f"{split}/macro_f1": score.macro_f1,
        f"{split}/nll": score.nats,
    }
    labels, names = corpus.examples(split).labels, corpus.classes
    chosen = [index * len(labels) // samples for index in range(min(samples, len(labels)))]
    examples = tuple(
        Example(corpus.text(split, i).strip(), names[labels[i]], names[score.predictions[i]]) for i in chosen
    )
    return Report(figures, {"examples": f"{len(labels):,}", "classes": ", ".join(names)}, examples)
