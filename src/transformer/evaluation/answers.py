"""How many answers of made problems a model gets right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from torch import nn

from ..data import SyntheticCorpus
from ..data.synthetic import AnswerBatch
from ..generation import evaluating
from .suite import Report


@dataclass(frozen=True)
class AnswerScore:
    """Sums over a set of problems. solved: problems of which every answer was right; nll: in nats, of all answers."""

    nll: float
    right: int
    answers: int
    solved: int
    problems: int

    @property
    def loss(self) -> float:
        """Nats per answer."""
        return self.nll / self.answers

    @property
    def accuracy(self) -> float:
        """The share of the answers that were right: the most probable symbol was the answer."""
        return self.right / self.answers

    @property
    def solved_share(self) -> float:
        """The share of the problems that were right as a whole."""
        return self.solved / self.problems


def evaluate_answers(model: nn.Module, batches: Iterable[AnswerBatch]) -> AnswerScore:
    """Return the score of a model on problems, in eval mode."""
    device = next(model.parameters()).device
    nll, right, answers, solved, problems = 0.0, 0, 0, 0, 0
    for batch in batches:
        moved = AnswerBatch(*(getattr(batch, entry.name).to(device) for entry in fields(batch)))
        with evaluating(model):
            logits = model(moved.tokens)
            likely = logits.double().log_softmax(-1).gather(-1, moved.labels[..., None])[..., 0]
            hit = logits.argmax(-1) == moved.labels
            nll -= float(likely[moved.asked].sum())
        right += int(hit[moved.asked].sum())
        answers += int(moved.asked.sum())
        solved += int((hit | ~moved.asked).all(1).sum())
        problems += len(hit)
    return AnswerScore(nll, right, answers, solved, problems)


def report_answers(model: nn.Module, corpus: SyntheticCorpus, split: str) -> Report:
    """Return accuracy, solved problems and loss of a split; of `test`, for each length that is examined."""
    evaluation = corpus.evaluation(split)
    figures: dict[str, float] = {}
    for length in evaluation.sets:
        score = evaluate_answers(model, evaluation.batches(length))
        name = f"{split}/{length}" if split == "test" else split
        figures |= {
            f"{name}/accuracy": score.accuracy,
            f"{name}/solved": score.solved_share,
            f"{name}/loss": score.loss,
        }
    return Report(figures)
