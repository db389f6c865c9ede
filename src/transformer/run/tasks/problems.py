"""Made problems: a decoder-only model learns one ability, such as recall, and is examined on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...analysis.cost import Shape
from ...data import SyntheticCorpus, SyntheticData
from ...data.synthetic import SyntheticStream
from ...evaluation import Report, evaluate_answers, report_answers
from ...generation import evaluating
from ...models import DecoderOnly
from ...training.objective import Answers
from .task import Task, Work

ProblemWork = Work[DecoderOnly, SyntheticCorpus, Answers]


class SolvingProblems(Task[DecoderOnly, SyntheticCorpus, Answers]):
    """A decoder-only model learns to answer."""

    data, objective, model = SyntheticData, Answers, DecoderOnly
    needs = "a decoder-only model solves synthetic problems"

    def longest(self, corpus: SyntheticCorpus) -> int:
        return corpus.longest

    def stream(self, corpus: SyntheticCorpus, objective: Answers, seed: int) -> SyntheticStream:
        return corpus.stream(seed)

    def largest(self, work: ProblemWork, accumulate: int) -> Shape:
        rows, length = work.corpus.stream(0).batch(0, 0, accumulate).tokens.shape
        return Shape(rows, length)

    def validate(self, work: ProblemWork) -> dict[str, float]:
        """The loss, in nats per answer, and the share of right answers."""
        evaluation = work.corpus.evaluation("validation")
        (length,) = evaluation.sets
        score = evaluate_answers(work.model, evaluation.batches(length))
        return {"val/loss": score.loss, "val/accuracy": score.accuracy}

    def sample(self, work: ProblemWork) -> str:
        """A problem: what is read and, where answers are asked for, the model's and the right one."""
        evaluation = work.corpus.evaluation("validation")
        (length,) = evaluation.sets
        batch = next(evaluation.batches(length))
        device = next(work.model.parameters()).device
        with evaluating(work.model):
            told = work.model(batch.tokens[:1].to(device)).argmax(-1)[0].cpu()
        asked = batch.asked[0]
        lines = {"read": batch.tokens[0], "told": told[asked], "right": batch.labels[0][asked]}
        return "\n".join(f"  {name:<6} {' '.join(map(str, line.tolist()))}" for name, line in lines.items())

    def report(self, work: ProblemWork, split: str) -> Report:
        return report_answers(work.model, work.corpus, split)

    def next_command(self, work: ProblemWork, folder: Path) -> Sequence[str]:
        return ("transformer", "evaluate", str(folder), "--split", "validation")
