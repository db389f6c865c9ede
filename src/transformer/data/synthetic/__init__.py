"""Tasks that are made, not collected: each asks for one ability and can be made harder by a number."""

from .algorithms import DyckTask, ModularTask, ParityTask, SortingTask
from .corpus import SyntheticCorpus, SyntheticData, SyntheticEvaluation, SyntheticStream, Task
from .problem import AnswerBatch, Problems
from .recall import AssociativeRecallTask, CopyingTask, InductionTask, SelectiveCopyingTask

__all__ = [
    "AnswerBatch",
    "AssociativeRecallTask",
    "CopyingTask",
    "DyckTask",
    "InductionTask",
    "ModularTask",
    "ParityTask",
    "Problems",
    "SelectiveCopyingTask",
    "SortingTask",
    "SyntheticCorpus",
    "SyntheticData",
    "SyntheticEvaluation",
    "SyntheticStream",
    "Task",
]
