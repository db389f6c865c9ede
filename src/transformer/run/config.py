"""A run as data: the sections of its configuration, and how they are read."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, get_type_hints

import torch

from ..base.sockets import Execution
from ..data import DataConfig
from ..enhancements.switches import SWITCHES, apply_switches
from ..models import FAMILIES, ModelConfig, build
from ..training.config import TrainingConfig
from ..training.objective import ObjectiveConfig
from ..training.optimizer import AdamConfig, AdamWConfig
from ..training.schedule import Constant, Cosine, Noam, WarmupStableDecay
from ..utils.codec import ConfigError, child, decode, encode, show, suggest
from ..utils.layering import Layers, read_layers
from .sections import EvaluationConfig, ExecutionConfig, OutputConfig
from .tasks import DATA, OBJECTIVES, Task, find_task, usual_task

BEGINNING = "init_from"
NOWHERE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ModelSection:
    """The `model` section: a family's hyper-parameters, and the switches. One subclass for each family.

    init_from: a run folder, a checkpoint or a directory of a published model to take the first weights from.
    """

    kind: ClassVar[str]
    init_from: str | None

    def architecture(self, vocab_size: int) -> tuple[ModelConfig, Execution]:
        """Return the architecture, and how to execute it, for a vocabulary of this size."""
        settings = {
            entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != BEGINNING
        }
        switches = {name: settings.pop(name) for name in SWITCHES}
        return apply_switches(FAMILIES[self.kind](vocab_size=vocab_size, **settings), switches)


def _section(family: str) -> type[ModelSection]:
    """Make the section of a family from its function's own signature, so that no hyper-parameter is named twice."""
    function = FAMILIES[family]
    hints = get_type_hints(function, include_extras=True)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "vocab_size"]
    settings = [(p.name, hints[p.name], field(default=p.default)) for p in parameters]
    switches = [(name, bool, field(default=False)) for name in SWITCHES]
    beginning = (BEGINNING, str | None, field(default=None))
    name = f"{family.capitalize()}Section"
    return make_dataclass(
        name,
        [*settings, *switches, beginning],
        bases=(ModelSection,),
        namespace={"kind": family},
        frozen=True,
    )


SECTIONS: Mapping[str, type[ModelSection]] = {family: _section(family) for family in FAMILIES}


@dataclass(frozen=True)
class RunConfig:
    """A whole run as data. `objective` null is the usual one of the model's family and the data."""

    model: ModelSection
    data: DataConfig
    objective: ObjectiveConfig | None = None
    optimizer: AdamConfig | AdamWConfig = field(default_factory=AdamWConfig)
    schedule: Noam | Cosine | WarmupStableDecay | Constant = field(default_factory=Cosine)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig, compare=False)

    def __post_init__(self) -> None:
        find_task(self.model.kind, self.data, self.objective)
        if self.evaluation.average_checkpoints > self.training.keep_last:
            raise ConfigError(
                f"evaluation.average_checkpoints {self.evaluation.average_checkpoints} is more than "
                f"training.keep_last {self.training.keep_last}; raise the latter to it"
            )

    @property
    def task(self) -> Task[Any, Any, Any]:
        """What the model is trained to do."""
        return find_task(self.model.kind, self.data, self.objective)


@contextmanager
def located(section: str, origin: Mapping[str, str]) -> Iterator[None]:
    """Say of a mistake that shows only in use which section of the configuration it is in."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        place = origin.get(section, "the configuration's defaults")
        raise ConfigError(f"{section} ({place}): {error}") from error


def require_memory(architecture: ModelConfig) -> None:
    """Refuse a model whose training would not fit the machine's memory, before a byte of it is taken.

    Weights, gradients and Adam's two averages are four float32 numbers a weight; activations come on top.
    """
    with torch.device("meta"):
        model = build(architecture)
    weights = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() for buffer in model.buffers())
    needed, there = 4 * (4 * weights + tables), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ConfigError(
            f"model: {weights:,} weights would need at least {needed / 2**30:,.0f} GiB to train and this machine's "
            f"configuration has {there / 2**30:,.0f} GiB; lower model.d_model, n_layers, d_ff or max_seq_len"
        )


def read_run(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> tuple[RunConfig, Layers]:
    """Read a run's configuration: files in order, then `section.key=value` overrides.

    Raises `ConfigError`, one line with the path of the key, the file and line, and the nearest valid key.
    """
    layers = read_layers(files, overrides)
    return decode_run(layers.data, layers.origin), layers


def decode_run(data: Mapping[str, Any], origin: Mapping[str, str]) -> RunConfig:
    """Decode the plain form of a configuration, in which `model.family` says whose hyper-parameters follow."""
    model = data.get("model", {})
    if isinstance(model, Mapping):
        place = f" ({origin['model']})" if "model" in origin else ""
        if "kind" in model:
            raise ConfigError(f"model.kind{place}: is not a key here; did you mean 'family'?")
        family = model.get("family", "transformer")
        if not isinstance(family, str) or family not in FAMILIES:
            near = suggest(str(family), FAMILIES)
            where = f" ({origin['model.family']})" if "model.family" in origin else ""
            raise ConfigError(
                f"model.family{where}: must be one of {', '.join(FAMILIES)}, got {show(family)}{near}"
            )
        settings = {key: value for key, value in model.items() if key != "family"}
        known = ["family", *(entry.name for entry in fields(SECTIONS[family]))]
        for key in settings.keys() - set(known):
            near = suggest(str(key), known) or f" (allowed: {', '.join(known)})"
            path = child("model", key)
            raise ConfigError(f"{path} ({origin.get(path, 'given')}): unknown key{near}")
        data = {**data, "model": {"kind": family, **settings}}
        data = _with_usual_kinds(family, data)
    config = decode(RunConfig, data, kinds={**SECTIONS, **DATA, **OBJECTIVES}, origin=origin)
    with located("model", origin):
        architecture, _ = config.model.architecture(vocab_size=1)
        require_memory(architecture)
    with located("schedule", origin):
        config.schedule.build(d_model=architecture.d_model, max_steps=config.training.max_steps)
    return config


def _with_usual_kinds(family: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain form with the kinds of data and objective that are left out: those usual for the rest."""
    feed, objective = data.get("data", {}), data.get("objective")
    given = [section.get("kind") if isinstance(section, Mapping) else None for section in (feed, objective)]
    task, filled = usual_task(family, *given), dict(data)
    if isinstance(feed, Mapping) and "kind" not in feed:
        filled["data"] = {"kind": task.data.kind, **feed}
    if isinstance(objective, Mapping) and "kind" not in objective:
        filled["objective"] = {"kind": task.objective.kind, **objective}
    return filled


def encode_run(config: RunConfig) -> dict[str, Any]:
    """Return the plain form of a configuration, complete: every default is written out."""
    data: dict[str, Any] = encode(config)
    model = data["model"]
    data["model"] = {"family": model.pop("kind"), **model}
    return data
