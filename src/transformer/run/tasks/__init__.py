"""The table of tasks: what each family can be trained to do, the usual task first."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...data import DataConfig
from ...training.objective import ObjectiveConfig
from ...utils.codec import ConfigError
from .classifying import Classifying
from .denoising import Denoising
from .language_modelling import LanguageModelling
from .masked_modelling import MaskedModelling
from .problems import SolvingProblems
from .task import Task, Work
from .translation import Translation

TASKS: Mapping[str, tuple[Task[Any, Any, Any], ...]] = MappingProxyType(
    {
        "transformer": (Translation(),),
        "gpt": (LanguageModelling(), SolvingProblems()),
        "llama": (LanguageModelling(), SolvingProblems()),
        "palm": (LanguageModelling(), SolvingProblems()),
        "mamba": (LanguageModelling(), SolvingProblems()),
        "mamba2": (LanguageModelling(), SolvingProblems()),
        "recurrent_gemma": (LanguageModelling(), SolvingProblems()),
        "hybrid": (LanguageModelling(), SolvingProblems()),
        "bert": (MaskedModelling(), Classifying()),
        "t5": (Translation(), Denoising()),
    }
)
"""The tasks of each family, by its name in a config file."""

ALL: tuple[Task[Any, Any, Any], ...] = tuple(
    {type(task): task for tasks in TASKS.values() for task in tasks}.values()
)
DATA: Mapping[str, type[DataConfig]] = MappingProxyType({task.data.kind: task.data for task in ALL})
OBJECTIVES: Mapping[str, type[ObjectiveConfig]] = MappingProxyType(
    {task.objective.kind: task.objective for task in ALL}
)


def usual_task(family: str, data: object = None, objective: object = None) -> Task[Any, Any, Any]:
    """Return the first task of a family with these kinds of data and objective, as far as they are given and known."""
    tasks = TASKS[family]
    of_data = [task for task in tasks if task.data.kind == data] or list(tasks)
    return next((task for task in of_data if task.objective.kind == objective), of_data[0])


def find_task(family: str, data: DataConfig, objective: ObjectiveConfig | None) -> Task[Any, Any, Any]:
    """Return the task that a configuration means; `ConfigError` where its parts do not fit each other."""
    tasks = TASKS[family]
    reading = [task for task in tasks if isinstance(data, task.data)]
    if not reading:
        kinds = list(dict.fromkeys(task.data.kind for task in tasks))
        raise ConfigError(
            f"model.family {family} reads {' or '.join(kinds)} data, but data.kind is {data.kind}; "
            f"set data.kind: {kinds[0]}, or another model.family"
        )
    fitting = [task for task in reading if objective is None or isinstance(objective, task.objective)]
    if not fitting:
        assert objective is not None
        raise ConfigError(
            f"objective.kind {objective.kind} does not fit {data.kind} data; leave the objective out"
        )
    return fitting[0]


__all__ = ["ALL", "DATA", "OBJECTIVES", "TASKS", "Task", "Work", "find_task", "usual_task"]
