"""Classification: an encoder with a map to classes, labelled text, the class of each text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...analysis.cost import Shape
from ...data import LabelledCorpus, LabelledData, LabelledStream
from ...evaluation import Report, evaluate_classes, report_classes
from ...models import EncoderOnlyConfig, ModelConfig, SequenceClassifier, classifier
from ...training.objective import Classification
from ...training.progress import Progress
from .task import Task, Work

ClassifyingWork = Work[SequenceClassifier, LabelledCorpus, Classification]


class Classifying(Task[SequenceClassifier, LabelledCorpus, Classification]):
    """An encoder learns to tell the class of a text."""

    data, objective, model = LabelledData, Classification, SequenceClassifier
    needs = "a classifier needs labelled data"

    def architecture(self, family: ModelConfig, corpus: LabelledCorpus) -> ModelConfig:
        assert isinstance(family, EncoderOnlyConfig)
        return classifier(family, corpus.classes)

    def longest(self, corpus: LabelledCorpus) -> int:
        return max(int(corpus.examples(split).widths.max()) for split in corpus.splits)

    def stream(self, corpus: LabelledCorpus, objective: Classification, seed: int) -> LabelledStream:
        return corpus.stream(seed)

    def largest(self, work: ClassifyingWork, accumulate: int) -> Shape:
        widest = int(work.corpus.examples("train").widths.max())
        return Shape(-(-work.corpus.config.batch_size // accumulate), widest)

    def validate(self, work: ClassifyingWork) -> dict[str, float]:
        """The loss of an example, in nats, and how many are right."""
        score = evaluate_classes(work.model, work.corpus.evaluation("validation"), len(work.corpus.classes))
        return {"val/loss": score.nats, "val/accuracy": score.accuracy, "val/macro_f1": score.macro_f1}

    def sample(self, work: ClassifyingWork) -> str:
        """Two examples of validation with the model's class."""
        report = report_classes(work.model, work.corpus, "validation", samples=2)
        return "\n".join(
            f"  {example.source}\n  → {example.hypothesis} ({example.reference})"
            for example in report.examples
        )

    def report(self, work: ClassifyingWork, split: str) -> Report:
        """Loss, accuracy and macro-F1; ValueError for data with other classes than the model's."""
        if work.model.config.classes != work.corpus.classes:
            raise ValueError(
                f"the model tells {', '.join(work.model.config.classes)} apart, and the data's classes are "
                f"{', '.join(work.corpus.classes)}; give data with the model's classes"
            )
        return report_classes(work.model, work.corpus, split, samples=work.options.samples)

    def show(self, work: ClassifyingWork, report: Report, folder: Path, progress: Progress) -> None:
        """Show texts with their classes and the model's."""
        for example in report.examples:
            progress.message(f"  text   {example.source}")
            progress.message(f"  class  {example.reference}")
            progress.message(f"  model  {example.hypothesis}\n")

    def next_command(self, work: ClassifyingWork, folder: Path) -> Sequence[str]:
        return ("transformer", "evaluate", str(folder), "--split", "validation")
