"""What each verb of the command line does. `cli` reads the arguments; the work is in the layers below."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text
from torch import nn

from . import run as runs
from .analysis.cost import Shape, count_active_parameters, count_flops, count_parameters, estimate_memory
from .analysis.describe import parts_tree, settings_table
from .analysis.difference import sizes_of, told
from .base.transformer import EncoderDecoder
from .data import DataConfig
from .evaluation import TASKS, Report, report_file, report_task
from .generation import translate as translate_sentences
from .interop import load, load_tokenizer_of, tokenizer_file_of
from .models import FAMILIES, DecoderOnly, DecoderOnlyConfig, ModelConfig, build
from .run import Parts, RunConfig
from .training.progress import Mode
from .utils.codec import decode, suggest
from .utils.layering import read_layers


def train(files: Sequence[Path], overrides: Sequence[str], mode: Mode) -> int:
    """Train; the exit code tells a finished run from an interrupted one."""
    config, layers = runs.read_run(files, overrides)
    return runs.train(config, console(), mode=mode, name=files[-1].stem, origin=layers.origin).exit_code


def inspect(files: Sequence[Path], overrides: Sequence[str]) -> int:
    """Show settings with their origins, the tree of parts, and what they cost."""
    config, layers = runs.read_run(files, overrides)
    parts, screen = runs.build_parts(config, layers.origin), console()
    screen.print(settings_table(runs.encode_run(config), layers.origin), "")
    screen.print(parts_tree(parts.model.config, parts.model), "")
    for line in _costs(config, parts):
        screen.print(Text(line))
    return 0


def inspect_difference(first: str, second: str) -> int:
    """Show how the second architecture differs from the first; a family is taken at the other's sizes."""
    of_first = None if first in FAMILIES else _architecture(first)
    of_second = None if second in FAMILIES else _architecture(second)
    before = of_first or _family(first, {} if of_second is None else sizes_of(of_second))
    after = of_second or _family(second, sizes_of(before))
    shape = _comparable_shape(before, after)
    counts = [_count_weights(config) for config in (before, after)]
    flops = [count_flops(config, shape).forward_per_token for config in (before, after)]
    out = console()
    out.out(f"from {first} to {second}", highlight=False)
    out.out(told(before, after), highlight=False)
    out.out(f"parameters: {counts[0]:,} → {counts[1]:,}", highlight=False)
    out.out(
        f"FLOPs per token, {shape.length} at once: {flops[0]:,.0f} → {flops[1]:,.0f} forward", highlight=False
    )
    return 0


def _architecture(name: str) -> ModelConfig:
    """The architecture that a configuration file, a run folder or a published model has."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        config, layers = runs.read_run([path])
        built: ModelConfig = runs.build_parts(config, layers.origin).model.config
        return built
    if path.exists():
        found: ModelConfig = load(path).config
        return found
    known = [*FAMILIES, *(str(entry) for entry in path.parent.glob("*"))]
    near = suggest(name, known) or f"; families are {', '.join(FAMILIES)}"
    raise ValueError(f"{name!r} is no family, configuration file, run folder or published model{near}")


def _family(name: str, sizes: Mapping[str, int]) -> ModelConfig:
    """A family of these sizes, as far as it has them, and of its own otherwise."""
    own = signature(FAMILIES[name]).parameters
    return FAMILIES[name](**{key: size for key, size in sizes.items() if key in own})


def _comparable_shape(*configs: ModelConfig) -> Shape:
    """One sequence that each of the models can read: of 128 tokens, or of as many as fit."""
    longest = [sizes_of(config).get("max_seq_len", 128) for config in configs]
    length = min(128, *longest)
    return Shape(1, length, length)


def _count_weights(config: ModelConfig) -> int:
    with torch.device("meta"):
        return count_parameters(build(config))


def _costs(config: RunConfig, parts: Parts) -> list[str]:
    """Parameters, operations and memory, for the run's own batches."""
    accumulate = config.training.accumulate
    shape, architecture = parts.task.largest(parts, accumulate), parts.model.config
    flops = count_flops(architecture, shape)
    reading = f" and {shape.source_length} to read" if shape.source_length else ""
    memory = estimate_memory(
        architecture,
        parts.model.execution,
        shape,
        objective=parts.objective,
        optimizer=config.optimizer,
        training=config.training,
    )
    sizes = [
        f"{name} {size / 2**20:,.0f} MiB" for name, size in vars(memory).items() if name != "peak" and size
    ]
    return [
        f"parameters        {count_parameters(parts.model):,}{_active(parts.model)}",
        f"FLOPs per token   {flops.forward_per_token:,.0f} forward, {flops.training_per_token:,.0f} training",
        f"largest batch     {shape.rows} rows of {shape.length} tokens to predict{reading}",
        f"training memory   {memory.peak / 2**20:,.0f} MiB of tensors at the peak of a step ({', '.join(sizes)}); "
        "the process takes more: PyTorch itself, and freed memory that the allocator keeps",
    ]


def _active(model: nn.Module) -> str:
    """How many weights a token uses, where it does not use all."""
    active = count_active_parameters(model)
    return "" if active == count_parameters(model) else f", of which a token uses {active:,}"


def prepare(output: Path, files: Sequence[Path], overrides: Sequence[str]) -> int:
    """Prepare a user's own data."""
    layers = read_layers(files, overrides)
    data = {"kind": "parallel", **layers.data.get("data", {})}
    config: DataConfig = decode(DataConfig, data, kinds=runs.DATA, path="data", origin=layers.origin)  # type: ignore[type-abstract]
    counts = config.prepare(output).counts
    for split, numbers in counts.items():
        told = ", ".join(f"{number:,} {name}" for name, number in numbers.items())
        console().print(Text(f"{split}: {told}"))
    console().print(Text(f"Next: train with --data.kind {data['kind']} --data.path {output}"))
    return 0


def translate(folder: Path, sentences: Sequence[str], beam_size: int, length_penalty: float) -> int:
    """Translate, one line for each sentence."""
    model, tokenizer = load(folder), load_tokenizer_of(folder)
    if not isinstance(model, EncoderDecoder):
        raise ValueError(
            f"{folder} holds a model of kind {model.config.kind}; translation needs an encoder-decoder"
        )
    out = console()
    for text in translate_sentences(
        model, tokenizer, list(sentences), beam_size=beam_size, length_penalty=length_penalty
    ):
        out.out(text, highlight=False)
    return 0


def evaluate(folder: Path, split: str | None, overrides: Sequence[str]) -> int:
    """Measure a trained model as its run's configuration says."""
    source = folder if (folder / "config.yaml").exists() else folder / "config.yaml"
    config, _ = runs.read_run([source / "config.yaml" if source.is_dir() else source], overrides)
    corpus, model = runs.open_corpus(config, tokenizer_file_of(folder)), load(folder)
    if corpus.tokenizer.fingerprint != load_tokenizer_of(folder).fingerprint:
        raise ValueError(
            f"{folder} was trained with another tokenizer than that of data.path {getattr(config.data, 'path', None)}"
        )
    parts = Parts.of(config, corpus, model)
    _show(parts.report(split or parts.split))
    return 0


def evaluate_file(path: Path, task: str | None, data: Path | None, limit: int | None) -> int:
    """Measure a model, whoever trained it, on a task's file or on a text."""
    if task is not None and task not in TASKS:
        near = suggest(task, TASKS)
        raise ValueError(f"there is no task {task!r}{near or '; there are ' + ', '.join(TASKS)}")
    if data is None or (task is None and limit is not None):
        needed = "--data FILE" if data is None else "--task NAME"
        raise ValueError(f"this needs {needed} as well; see transformer evaluate --help")
    model, tokenizer = load(path), load_tokenizer_of(path)
    if not isinstance(model, DecoderOnly):
        raise ValueError(
            f"{path} holds a model of kind {model.config.kind}; tasks and texts are for language models, of kind "
            f"{DecoderOnlyConfig.kind}"
        )
    if task is None:
        _show(report_file(model, tokenizer, data))
    else:
        _show(report_task(model, tokenizer, task, data, limit))
    return 0


def _show(final: Report) -> None:
    """Show figures, and what they cannot be compared without."""
    for name, value in final.figures.items():
        console().out(f"{name:<20} {value:.4f}", highlight=False)
    for name, text in final.notes.items():
        console().out(f"{name:<20} {text}", highlight=False)


def console() -> Console:
    """The console that people read; warnings of the library go to the standard error."""
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    return Console()
