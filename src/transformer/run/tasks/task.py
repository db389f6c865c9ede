"""What a kind of training needs of a run: one object for each pair of data and objective.

The rest of a run (its folder, its loop, its checkpoints) is the same for all. A new task is a file here, and a row in
the table of `tasks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from ...analysis.cost import Shape
from ...data import Corpus, DataConfig
from ...evaluation import Report
from ...models import ModelConfig
from ...training.loop import Stream
from ...training.objective import ObjectiveConfig
from ...training.progress import Progress
from ..sections import EvaluationConfig

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound=Corpus[Any])
G = TypeVar("G", bound=ObjectiveConfig)


@dataclass(frozen=True)
class Work(Generic[M, C, G]):
    """What a task works on. options: how to evaluate; seed: of the run."""

    model: M
    corpus: C
    objective: G
    options: EvaluationConfig
    seed: int


class Task(ABC, Generic[M, C, G]):
    """A kind of training.

    data, objective: the configurations that ask for it. model: the kind of model that it trains; needs: that kind in
    words, and the data that it can be evaluated on. special_tokens: names of the tokens that the tokenizer must have
    besides pad, bos and eos.
    """

    data: ClassVar[type[DataConfig]]
    objective: ClassVar[type[ObjectiveConfig]]
    model: ClassVar[type[nn.Module]]
    needs: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]] = ()

    def prepare(self, objective: G, corpus: C) -> G:
        """Return the objective with what only the data can tell."""
        return objective

    def architecture(self, family: ModelConfig, corpus: C) -> ModelConfig:
        """Return the architecture to train, given the one that the family makes."""
        return family

    @abstractmethod
    def longest(self, corpus: C) -> int:
        """Return the tokens of the longest sequence that the model will read."""

    @abstractmethod
    def stream(self, corpus: C, objective: G, seed: int) -> Stream[Any]:
        """Return the training batches as a function of the step. DataError where data and settings do not fit."""

    @abstractmethod
    def largest(self, work: Work[M, C, G], accumulate: int) -> Shape:
        """Return the shape of the largest of `accumulate` micro-batches."""

    @abstractmethod
    def validate(self, work: Work[M, C, G]) -> Mapping[str, float]:
        """Measure the model on the whole validation split; `val/loss` ranks checkpoints."""

    @abstractmethod
    def sample(self, work: Work[M, C, G]) -> str:
        """Return something that the model does now, to be looked at."""

    @abstractmethod
    def report(self, work: Work[M, C, G], split: str) -> Report:
        """Measure a trained model on a whole split."""

    def show(self, work: Work[M, C, G], report: Report, folder: Path, progress: Progress) -> None:
        """Show at the end of a run what the model does."""
        progress.message(self.sample(work))

    @abstractmethod
    def next_command(self, work: Work[M, C, G], folder: Path) -> Sequence[str]:
        """Return the words of a command worth typing after a run."""
