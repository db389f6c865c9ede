"""A run as data: the sections of its configuration, and how they are read."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import torch
from annotated_types import Ge

from ..base.sockets import Execution
from ..data import ParallelData, TextData
from ..enhancements.attention.kernels import KERNELS
from ..enhancements.switches import SWITCHES, apply_switches
from ..models import FAMILIES, ModelConfig, build
from ..training.config import TrainingConfig
from ..training.objective import Causal, SequenceToSequence
from ..training.optimizer import AdamConfig, AdamWConfig
from ..training.schedule import Constant, Cosine, Noam, WarmupStableDecay
from ..utils.codec import ConfigError, child, decode, encode, show, suggest
from ..utils.layering import Layers, read_layers

NOWHERE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ModelSection:
    """The `model` section: a family's hyper-parameters, and the switches. One subclass for each family."""

    kind: ClassVar[str]

    def architecture(self, vocab_size: int) -> tuple[ModelConfig, Execution]:
        """Return the architecture, and how to execute it, for a vocabulary of this size."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        switches = {name: settings.pop(name) for name in SWITCHES}
        return apply_switches(FAMILIES[self.kind](vocab_size=vocab_size, **settings), switches)


def _section(family: str) -> type[ModelSection]:
    """Make the section of a family from its function's own signature, so that no hyper-parameter is named twice."""
    function = FAMILIES[family]
    hints = get_type_hints(function, include_extras=True)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "vocab_size"]
    settings = [(p.name, hints[p.name], field(default=p.default)) for p in parameters]
    switches = [(name, bool, field(default=False)) for name in SWITCHES]
    name = f"{family.capitalize()}Section"
    return make_dataclass(
        name, [*settings, *switches], bases=(ModelSection,), namespace={"kind": family}, frozen=True
    )


SECTIONS: Mapping[str, type[ModelSection]] = {family: _section(family) for family in FAMILIES}
FEEDS: Mapping[str, type[ParallelData] | type[TextData]] = {
    "transformer": ParallelData,
    "gpt": TextData,
    "llama": TextData,
}
"""The kind of data that each family reads."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The `evaluation` section: what is measured at the end of a run, and what is shown.

    split: of the data, for the final figures; null is `test` where there is one, else `validation`.
    beam_size, length_penalty: the search of translations (arXiv 1706.03762 §6.1: 4 and 0.6).
    average_checkpoints: evaluate the mean of the last so many checkpoints' weights
    (§6.1: 5), instead of the last, or the moving average if there is one. samples: translations to show, or
    figures of their attention to draw. sample_tokens, prompt: the text that a language model writes.
    """

    split: str | None = None
    beam_size: Annotated[int, Ge(1)] = 4
    length_penalty: Annotated[float, Ge(0)] = 0.6
    average_checkpoints: Annotated[int, Ge(1)] = 1
    samples: Annotated[int, Ge(0)] = 5
    figures: Annotated[int, Ge(0)] = 3
    sample_tokens: Annotated[int, Ge(1)] = 200
    prompt: str = "\n"


@dataclass(frozen=True)
class ExecutionConfig:
    """The `execution` section: how to compute, never what, so that it may differ between two sittings of one run.

    kernel: the attention kernel; auto is the definition, or with model.use_flash_attention the best for each case.
    """

    kernel: Literal["auto", "naive", "flash", "chunked", "sdpa", "flex", "triton"] = "auto"

    def apply(self, execution: Execution) -> Execution:
        """What the switches say, unless this section says otherwise."""
        return execution if self.kernel == "auto" else replace(execution, kernel=KERNELS[self.kernel])


@dataclass(frozen=True)
class OutputConfig:
    """The `output` section. dir: the run folder; null makes a new one, `runs/NAME-TIME-HEX`."""

    dir: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """A whole run as data. `objective` null is the usual one of the model's family."""

    model: ModelSection
    data: ParallelData | TextData
    objective: SequenceToSequence | Causal | None = None
    optimizer: AdamConfig | AdamWConfig = field(default_factory=AdamWConfig)
    schedule: Noam | Cosine | WarmupStableDecay | Constant = field(default_factory=Cosine)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig, compare=False)

    def __post_init__(self) -> None:
        wanted = FEEDS[self.model.kind]
        if not isinstance(self.data, wanted):
            raise ConfigError(
                f"model.family {self.model.kind} reads {wanted.kind} data, but data.kind is {self.data.kind}; "
                f"set data.kind: {wanted.kind}, or another model.family"
            )
        if self.evaluation.average_checkpoints > self.training.keep_last:
            raise ConfigError(
                f"evaluation.average_checkpoints {self.evaluation.average_checkpoints} is more than "
                f"training.keep_last {self.training.keep_last}; raise the latter to it"
            )
        if (
            isinstance(self.objective, Causal) != isinstance(self.data, TextData)
            and self.objective is not None
        ):
            raise ConfigError(
                f"objective.kind {self.objective.kind} does not fit {self.data.kind} data; leave the objective out"
            )


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
        feed = data.get("data", {})
        if isinstance(feed, Mapping) and "kind" not in feed:
            data["data"] = {"kind": FEEDS[family].kind, **feed}
    config = decode(RunConfig, data, kinds=SECTIONS, origin=origin)
    with located("model", origin):
        architecture, _ = config.model.architecture(vocab_size=1)
        require_memory(architecture)
    with located("schedule", origin):
        config.schedule.build(d_model=architecture.d_model, max_steps=config.training.max_steps)
    return config


def encode_run(config: RunConfig) -> dict[str, Any]:
    """Return the plain form of a configuration, complete: every default is written out."""
    data: dict[str, Any] = encode(config)
    model = data["model"]
    data["model"] = {"family": model.pop("kind"), **model}
    return data
