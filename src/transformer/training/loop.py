"""The training loop: batches in, weights, metrics and checkpoints out.

Steps are numbered by how many are done. Step s (from 1) reads `data.batch(s - 1)`, seeds dropout from
(seed, s - 1, micro-batch) and uses the learning rate of s: everything random is a function of the step, so a
checkpoint holds tensors and a few sums, and a resumed run is bit for bit the uninterrupted one on a CPU.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from .average import WeightAverage
from .checkpoint import Checkpoint, CheckpointError, CheckpointStore
from .config import TrainingConfig, TrainingResult
from .lock import RunLock
from .metrics import MetricsLog, Record, TensorBoard, Value, read_metrics, rewind_metrics
from .objective import Objective
from .optimizer import OptimizerConfig, load_optimizer_tensors, optimizer_tensors
from .progress import Progress
from .schedule import LearningRate
from .signals import StopSignals
from .state import Interval, RunState, describe_difference, environment, refuse_difference
from .step import StepFigures, TrainingStep
from .watch import NonFiniteError, SpikeDetector

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)

MAX_SKIPS_IN_A_ROW = 10  # beyond this many, skipping would hide a run that has failed
SCORE = "val/loss"  # the figure that ranks checkpoints, lower is better


@runtime_checkable
class Stream(Protocol[B_co]):
    """Training data as a function: the same arguments always give the same batch."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> B_co:
        """Return micro-batch `part` of the `parts` that make up the batch of `step` (from 0)."""


class Trainer(Generic[B]):
    """Train `model` in place and keep the run folder.

    Args:
        model: in its training dtype and on its device.
        objective: gives the summed loss of a batch.
        optimizer: settings, built here for the model's parameters.
        schedule: the learning rate of a step (from 1).
        data: the training stream.
        config: how long, how often, how safely.
        folder: the run folder.
        progress: where to show what happens.
        evaluate: figures such as `val/loss`, which ranks checkpoints, after a step. The model is in eval
            mode without gradients, and holds the averaged weights if there are any.
        sample: text to show at each evaluation.
        files: further files of every checkpoint, such as `config.yaml`.
        fingerprints: what must be the same when a run is resumed, such as the tokenizer's hash.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[B],
        optimizer: OptimizerConfig,
        schedule: LearningRate,
        data: Stream[B],
        config: TrainingConfig,
        folder: Path,
        *,
        progress: Progress,
        evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
        sample: Callable[[nn.Module, int], str] | None = None,
        files: Mapping[str, bytes] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.data, self.schedule, self.config = model, data, schedule, config
        self.folder, self.progress = Path(folder), progress
        self.evaluate, self.sample, self.files = evaluate, sample, dict(files or {})
        self.identity = {**(fingerprints or {}), "seed": str(config.seed)}
        self.optimizer = optimizer.build(model)
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay is not None else None
        self.step = TrainingStep(model, objective, self.optimizer, schedule, self.average, config)
        self.store = CheckpointStore(self.folder, keep_last=config.keep_last, keep_best=config.keep_best)
        self.state = RunState()
        self.spikes = SpikeDetector()
        self.signals = StopSignals()
        self.metrics_path = self.folder / "metrics.jsonl"
        self._evaluation: Record = {}
        self._saved: int | None = None
        self._unsaved: str | None = None

    def run(self) -> TrainingResult:
        """Train up to `max_steps`, from the newest checkpoint if there is one, and return what came of it.

        Raises:
            NonFiniteError: a loss or gradient was not finite, and the policy is to stop; the last good
                step is saved.
            ValueError: the folder is in use or belongs to another run, or a checkpoint cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.signals, RunLock(self.folder):
            self._resume()
            self.metrics = self._open_metrics()
            self.progress.start(self.state.step, self.config.max_steps)
            try:
                self._train()
            except NonFiniteError:
                self._save()
                raise
            finally:
                self.progress.stop()
                self.metrics.close()
        return self._result()

    def _train(self) -> None:
        self.model.train()
        while True:
            self._evaluate_if_due()
            stopping = self._finished or self.signals.received is not None
            if stopping or self._due(self.config.checkpoint_every):
                self._save()
            if stopping:
                return
            self._advance()

    def _advance(self) -> None:
        """Make one step and account for it. Only this is training time: no evaluation, no saving."""
        started = time.perf_counter()
        parts = range(self.config.accumulate)
        batches = [self.data.batch(self.state.step, part, len(parts)) for part in parts]
        figures = self.step(self.state.step, batches)
        if figures.problem and self._must_stop():
            raise NonFiniteError(f"{figures.problem}; the weights are those of step {self.state.step}")
        self.state.step += 1
        self._account(figures, time.perf_counter() - started)
        self.progress.advance(self.state.step)
        if self._due(self.config.log_every):
            self._log(figures)

    def _must_stop(self) -> bool:
        return self.config.on_non_finite == "stop" or self.state.skipped_in_a_row >= MAX_SKIPS_IN_A_ROW

    def _account(self, figures: StepFigures, seconds: float) -> None:
        state, interval = self.state, self.state.interval
        state.seconds += seconds
        interval.seconds += seconds
        if figures.problem:
            state.skipped_in_a_row += 1
            interval.skipped += 1
            self.progress.warning(f"{figures.problem}; the step is skipped")
            return
        state.skipped_in_a_row = 0
        state.tokens += figures.count
        interval.tokens += figures.count
        interval.loss += figures.loss
        interval.nll += figures.nll
        mean = figures.loss / max(1, figures.count)
        if self.spikes.is_spike(mean):
            interval.spikes += 1
            self.progress.warning(f"step {state.step}: the loss jumped to {mean:.4f}")

    # — at the end of a step —

    @property
    def _finished(self) -> bool:
        return self.state.step >= self.config.max_steps

    def _due(self, every: int) -> bool:
        return self.state.step > 0 and (self.state.step % every == 0 or self._finished)

    def _log(self, figures: StepFigures) -> None:
        interval, self.state.interval = self.state.interval, Interval()
        record: dict[str, Value] = {
            "train/loss": interval.loss / interval.tokens if interval.tokens else None,
            "train/nll": interval.nll / interval.tokens if interval.tokens else None,
            "train/tokens": self.state.tokens,
            "opt/lr": self.schedule(self.state.step),
            "opt/grad_norm": figures.gradient_norm,
            "perf/tokens_per_second": interval.tokens / interval.seconds,
            "mem/peak_bytes": peak_bytes(self.step.device),
        }
        counts = {"train/skipped": interval.skipped, "train/spikes": interval.spikes}
        self._record({**record, **{name: count for name, count in counts.items() if count}})

    def _evaluate_if_due(self) -> None:
        """Evaluate, unless the metrics hold this step's evaluation already; a signal ends it unfinished."""
        wanted = self.evaluate is not None or self.sample is not None
        if not wanted or not self._due(self.config.evaluate_every) or self._evaluated_now:
            return
        with self._evaluation_weights():
            figures = self.signals.attempt(self._evaluation_figures)
        if figures is not None:
            self._saved = None  # so that a checkpoint of this step gets its score
            self._evaluation = self._record(figures)

    def _evaluation_figures(self) -> dict[str, Value]:
        figures = self.evaluate(self.model, self.state.step) if self.evaluate else {}
        text = {"sample": self.sample(self.model, self.state.step)} if self.sample else {}
        return {**figures, **text}

    @property
    def _evaluated_now(self) -> bool:
        return self._evaluation.get("step") == self.state.step

    @contextmanager
    def _evaluation_weights(self) -> Iterator[None]:
        self.model.eval()
        try:
            with torch.no_grad():
                if self.average is None:
                    yield
                else:
                    with self.average.applied_to(self.model):
                        yield
        finally:
            self.model.train()

    def _record(self, figures: Mapping[str, Value]) -> Record:
        record = {"step": self.state.step, "time": self.state.seconds, **figures}
        try:
            self.metrics.append(record)
        except OSError as error:
            self._disk_failed(error)
        self.progress.record(record)
        return record

    # — saving and resuming —

    def _save(self) -> None:
        """Save a checkpoint of this step, unless there is one."""
        if self._saved == self.state.step:
            return
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average:
            tensors["ema"] = self.average.tensors
        self.state.recent_losses = list(self.spikes.recent)
        state = {**self.state.encode(), "identity": self.identity, "environment": environment()}
        try:
            self.metrics.sync()
            self.store.save(
                self.state.step, tensors=tensors, state=state, files=self.files, score=self._score()
            )
        except (CheckpointError, OSError) as error:
            self._disk_failed(error)
        else:
            self._saved, self._unsaved = self.state.step, None

    def _disk_failed(self, error: Exception) -> None:
        if self.config.on_save_error == "stop":
            raise error
        self._unsaved = str(error)
        self.progress.warning(self._unsaved)

    def _score(self) -> float | None:
        score = self._evaluation.get(SCORE) if self._evaluated_now else None
        return score if isinstance(score, float) else None

    def _resume(self) -> None:
        self.store.sweep()
        checkpoint = self._checkpoint_to_resume()
        if checkpoint is None:
            return
        for reason in checkpoint.skipped:
            self.progress.warning(f"skipped a checkpoint: {reason}")
        refuse_difference(checkpoint.state.get("identity", {}), self.identity, str(checkpoint.path))
        for change in describe_difference(checkpoint.state.get("environment", {}), environment()):
            self.progress.warning(change)
        self._load(checkpoint)
        self.progress.message(f"resuming after step {self.state.step}: {checkpoint.path}")

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        resume = self.config.resume
        if resume == "auto":
            return self.store.newest()
        if self.store.steps():
            raise ValueError(
                f"training.resume is {resume!r} but {self.folder} already holds checkpoints; "
                f"use resume: auto to go on with them, or another output.dir"
            )
        if resume == "never":
            return None
        if (Path(resume) / "checkpoints").is_dir():
            return CheckpointStore(Path(resume)).newest()
        return self.store.open(Path(resume))

    def _load(self, checkpoint: Checkpoint) -> None:
        state = RunState.decode(checkpoint.state)
        try:
            self.model.load_state_dict(checkpoint.tensors("model"))
        except RuntimeError as error:
            first = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(f"cannot resume {checkpoint.path}: it is of another model: {first}") from error
        load_optimizer_tensors(self.optimizer, checkpoint.tensors("optimizer"))
        if self.average:
            self.average.load(checkpoint.tensors("ema"))
        self.state = state
        self.spikes.recent.extend(state.recent_losses)
        self._saved = state.step if self.config.resume == "auto" else None

    def _open_metrics(self) -> MetricsLog:
        rewind_metrics(self.metrics_path, self.state.step)
        self._evaluation = _last(read_metrics(self.metrics_path), lambda record: "train/loss" not in record)
        sinks = (
            [TensorBoard(self.folder / "tensorboard", self.state.step + 1)] if self.config.tensorboard else []
        )
        return MetricsLog(self.metrics_path, sinks)

    def _result(self) -> TrainingResult:
        latest: Mapping[str, Any] = _last(
            read_metrics(self.metrics_path), lambda record: "train/loss" in record
        )
        evaluation = {k: v for k, v in self._evaluation.items() if isinstance(v, float) and k != "time"}
        return TrainingResult(
            step=self.state.step,
            tokens=self.state.tokens,
            seconds=self.state.seconds,
            train_loss=latest.get("train/loss"),
            train_nll=latest.get("train/nll"),
            evaluation=evaluation,
            peak_bytes=peak_bytes(self.step.device),
            interrupted_by=self.signals.received,
            unsaved=self._unsaved,
        )


def _last(records: Iterable[Record], chosen: Callable[[Record], bool]) -> Record:
    return next((record for record in reversed(list(records)) if chosen(record)), {})


def peak_bytes(device: torch.device) -> int:
    """Return the most memory used so far: of the GPU's allocator, or the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
