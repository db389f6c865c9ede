"""Made problems as data to train on: batches that are a function of (seed, step), and sets to be examined on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
from annotated_types import Ge

from ...utils.rng import derive_seed
from ..errors import DataError
from ..order import Permutation
from ..prepared import Corpus, DataConfig
from ..symbols import SymbolTokenizer
from .algorithms import DyckTask, ModularTask, ParityTask, SortingTask
from .problem import AnswerBatch, Problems, TaskConfig
from .recall import AssociativeRecallTask, CopyingTask, InductionTask, SelectiveCopyingTask

Task: TypeAlias = (
    CopyingTask
    | SelectiveCopyingTask
    | InductionTask
    | AssociativeRecallTask
    | SortingTask
    | DyckTask
    | ParityTask
    | ModularTask
)


@dataclass(frozen=True)
class SyntheticData(DataConfig):
    """The `data` section of a run on a made task.

    examples: how many different problems training goes through again and again, null for new ones at each step. A task
    with a table, such as modular arithmetic, has its share of the table instead. validation_examples: how many problems
    the model is examined on; they are others than those of training, but for chance. lengths: also examine at these
    lengths (task.context or task.items), under the split `test`, to see what is kept of a skill outside the lengths
    trained on. seed: of the problems, so that runs with different training seeds share their examinations.
    """

    kind: ClassVar[str] = "synthetic"
    task: Task = field(default_factory=AssociativeRecallTask)
    batch_size: Annotated[int, Ge(1)] = 64
    examples: Annotated[int, Ge(1)] | None = None
    validation_examples: Annotated[int, Ge(1)] = 1000
    lengths: tuple[Annotated[int, Ge(1)], ...] = ()
    seed: Annotated[int, Ge(0)] = 0
    path: ClassVar[str] = ""
    cache: ClassVar[None] = None

    def __post_init__(self) -> None:
        for length in self.lengths:
            at_length(self.task, length)

    def files(self) -> Mapping[str, Sequence[Path]]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {}

    def load(self) -> SyntheticCorpus:
        """Open the task; its problems are made when they are needed."""
        return SyntheticCorpus(self)

    def prepare(self, output: Path) -> SyntheticCorpus:
        raise DataError(
            "the problems of a synthetic task are made when they are needed: train with it at once"
        )


def at_length(task: Task, length: int) -> Task:
    """Return the task with problems of another length. DataError for one whose problems have one length only."""
    if isinstance(task, CopyingTask | SortingTask):
        return replace(task, items=length)
    if isinstance(task, ModularTask):
        raise DataError(f"problems of the task {task.kind} have one length; leave data.lengths out")
    return replace(task, context=length)


class SyntheticStream:
    """Batches for training."""

    def __init__(self, config: SyntheticData, problems: Problems | None, seed: int) -> None:
        self._config, self._problems, self._seed = config, problems, seed

    def batch(self, step: int, part: int = 0, parts: int = 1) -> AnswerBatch:
        """Return the batch of `step` (from 0), or its `part` of `parts`."""
        if not 0 <= part < parts or step < 0:
            raise ValueError(
                f"expected 0 <= step and 0 <= part < parts, got step {step}, part {part}/{parts}"
            )
        size = self._config.batch_size
        first, last = size * part // parts, size * (part + 1) // parts
        if self._problems is None:
            dice = np.random.default_rng(derive_seed(self._seed, "synthetic", step))
            return self._config.task.draw(dice, size).batch(slice(first, last))
        number = step * size + np.arange(first, last)
        epochs, places = np.divmod(number, len(self._problems))
        rows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            shuffle = Permutation(len(self._problems), derive_seed(self._seed, "epoch", epoch))
            rows[chosen] = shuffle(places[chosen])
        return self._problems.batch(rows)


class SyntheticEvaluation:
    """A fixed set of problems for each length that is examined, in batches."""

    def __init__(self, sets: Mapping[int, Problems], batch_size: int) -> None:
        self.sets, self._batch_size = sets, batch_size

    def batches(self, length: int) -> Iterator[AnswerBatch]:
        """Yield the problems of a length."""
        problems = self.sets[length]
        for first in range(0, len(problems), self._batch_size):
            yield problems.batch(slice(first, first + self._batch_size))


class SyntheticCorpus(Corpus[SyntheticData]):
    """A task and its problems."""

    def __init__(self, config: SyntheticData) -> None:
        self.config = config
        self.tokenizer = SymbolTokenizer(config.task.vocab_size)
        self._train, self._validation = self._make()

    def _make(self) -> tuple[Problems | None, Problems]:
        """The problems of training, where there is a fixed set of them, and those of validation."""
        config = self.config
        table = config.task.every()
        if table is not None:
            order = Permutation(len(table), derive_seed(config.seed, "table")).all()
            cut = round(len(table) * getattr(config.task, "train_share", 0.5))
            return tuple(  # type: ignore[return-value]
                Problems(table.tokens[rows], table.labels[rows], table.asked[rows])
                for rows in (order[:cut], order[cut:])
            )
        train = None if config.examples is None else self._draw(config.task, "train", config.examples)
        return train, self._draw(config.task, "validation", config.validation_examples)

    def _draw(self, task: TaskConfig, split: str, n: int) -> Problems:
        return task.draw(np.random.default_rng(derive_seed(self.config.seed, split, task.length)), n)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test") if self.config.lengths else ("train", "validation")

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        counts = {"validation": {"problems": len(self._validation)}}
        if self.config.lengths:
            counts["test"] = {"problems": self.config.validation_examples * len(self.config.lengths)}
        train = {} if self._train is None else {"problems": len(self._train)}
        return {"train": {**train, "symbols": self.tokenizer.vocab_size}, **counts}

    @property
    def longest(self) -> int:
        """The symbols of the longest problem that is trained on or examined."""
        tasks = [self.config.task, *(at_length(self.config.task, n) for n in self.config.lengths)]
        return max(task.length for task in tasks)

    def stream(self, seed: int) -> SyntheticStream:
        """Return the training batches as a function of the step."""
        return SyntheticStream(self.config, self._train, seed)

    def evaluation(self, split: str = "validation") -> SyntheticEvaluation:
        """Return the problems of a split: of the lengths `data.lengths` for "test", else of the task's own."""
        self.require_split(split)
        config = self.config
        if split == "train":
            shown = (
                self._draw(config.task, "train", config.validation_examples)
                if self._train is None
                else self._train
            )
            return SyntheticEvaluation({config.task.length: shown}, config.batch_size)
        if split == "validation":
            return SyntheticEvaluation({config.task.length: self._validation}, config.batch_size)
        sets = {
            n: self._draw(at_length(config.task, n), "test", config.validation_examples)
            for n in config.lengths
        }
        return SyntheticEvaluation(sets, config.batch_size)
