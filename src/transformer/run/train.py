"""Training from a configuration: build everything, train, evaluate, and leave it all in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from ..analysis.cost import count_parameters
from ..data import Corpus
from ..training.average import average_checkpoints
from ..training.checkpoint import CheckpointStore
from ..training.config import TrainingResult
from ..training.loop import Trainer
from ..training.progress import Mode, Progress
from .config import NOWHERE, RunConfig
from .folder import new_folder, write_json, write_run_files
from .parts import Parts, build_parts
from .sections import OutputConfig


@dataclass(frozen=True)
class Outcome:
    """How a run ended. exit_code: 0 finished, 130 or 143 interrupted and saved. figures: as in results.json."""

    folder: Path
    exit_code: int
    figures: Mapping[str, float]


def train(
    config: RunConfig,
    console: Console,
    *,
    mode: Mode = "auto",
    name: str = "run",
    origin: Mapping[str, str] = NOWHERE,
) -> Outcome:
    """Train as configured, evaluate, and leave everything in the run folder.

    A folder that holds checkpoints of the same run is gone on with, bit for bit; `name` begins the name of a new one.
    """
    folder = Path(config.output.dir) if config.output.dir else new_folder(name)
    parts = build_parts(replace(config, output=OutputConfig(str(folder))), origin)
    with Progress(console, mode, log=folder / "console.log") as progress:
        n_parameters = count_parameters(parts.model)
        progress.message(
            f"{folder}: {config.model.kind}, {n_parameters:,} parameters, {_describe(parts.corpus)}"
        )
        trainer = _trainer(parts, folder, progress)
        result = trainer.run()
        if result.interrupted_by is not None:
            again = ("transformer", "train", "--config", str(folder / "config.yaml"))
            progress.summary(_shown(result), folder, again)
            return Outcome(folder, result.exit_code, {})
        figures = _finish(parts, trainer, result, progress)
    return Outcome(folder, 0, figures)


def _describe(corpus: Corpus[Any]) -> str:
    """Say how much data there is to train on."""
    counts = corpus.counts["train"]
    return ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)


def _trainer(parts: Parts, folder: Path, progress: Progress) -> Trainer[Any]:
    config = parts.config
    trainer = Trainer(
        parts.model,
        parts.objective,
        config.optimizer,
        config.schedule.build(d_model=parts.model.config.d_model, max_steps=config.training.max_steps),
        parts.task.stream(parts.corpus, parts.objective, parts.seed),
        config.training,
        folder,
        progress=progress,
        evaluate=lambda model, step: parts.task.validate(parts),
        sample=lambda model, step: parts.task.sample(parts),
        files=parts.files(),
        fingerprints=parts.fingerprints(),
    )
    write_run_files(folder, parts.files()["config.yaml"])
    return trainer


def _finish(
    parts: Parts, trainer: Trainer[Any], result: TrainingResult, progress: Progress
) -> dict[str, float]:
    """Evaluate the weights that the run is judged by, and save them, the figures and the pictures."""
    config, folder = parts.config, trainer.folder
    weights, origin = _final_weights(trainer, config.evaluation.average_checkpoints)
    parts.model.load_state_dict({**parts.model.state_dict(), **weights})
    parts.model.eval()
    final = parts.report(parts.split)
    figures = {**_figures(result), **final.figures}
    CheckpointStore(folder / "export", keep_last=1).save(
        result.step,
        tensors={"model": parts.model.state_dict()},
        state={"weights": origin},
        files=parts.files(),
    )
    notes = {**final.notes, "weights": origin}
    write_json(folder / "results.json", {**figures, "notes": notes})
    parts.task.show(parts, final, folder, progress)
    shown = {name: f"{value:.2f}" for name, value in final.figures.items()}
    progress.summary({**_shown(result), **shown, **notes}, folder, parts.task.next_command(parts, folder))
    return figures


def _final_weights(trainer: Trainer[Any], n_checkpoints: int) -> tuple[dict[str, Tensor], str]:
    """The weights a run is judged by, and in words which they are."""
    if n_checkpoints > 1:
        steps = trainer.store.steps()[-n_checkpoints:]
        stored = (trainer.store.open(step).tensors("model") for step in steps)
        return average_checkpoints(stored), f"mean of the checkpoints of steps {', '.join(map(str, steps))}"
    if trainer.average is not None:
        return dict(trainer.average.tensors), f"moving average, decay {trainer.average.decay}"
    return {}, "those of the last step"


def _figures(result: TrainingResult) -> dict[str, float]:
    """The figures of the training itself, for results.json."""
    figures = {
        "train/loss": result.train_loss,
        "train/nll": result.train_nll,
        "perf/tokens_per_second": result.tokens_per_second,
        "perf/train_seconds": result.seconds,
        "mem/peak_bytes": result.peak_bytes,
        "step": result.step,
        **result.evaluation,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _shown(result: TrainingResult) -> dict[str, str]:
    """The figures of the training itself, for people."""
    shown = {
        "steps": f"{result.step:,}",
        "training time": f"{result.seconds:.0f} s",
        "tokens/s": f"{result.tokens_per_second:,.0f}",
        "peak memory": f"{result.peak_bytes / 2**20:,.0f} MiB",
    }
    losses = {"train loss": result.train_loss, "validation loss": result.evaluation.get("val/loss")}
    return {**{name: f"{loss:.4f}" for name, loss in losses.items() if loss is not None}, **shown}
