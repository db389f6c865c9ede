"""How a run trains, apart from its model, data, optimizer and schedule."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class TrainingConfig:
    """The `training` section of a run's configuration.

    max_steps: optimizer steps; seed: with the step, decides every random number of the run.
    precision: `bfloat16` runs the forward pass under autocast; weights and losses stay float32.
    accumulate: micro-batches per step, whose gradient is exactly that of the whole batch.
    clip_norm: largest global gradient norm, null for none.
    log_every, evaluate_every, checkpoint_every: in steps; the last step always does all three.
    resume: `auto` goes on from the newest valid checkpoint of the folder, `never` insists on a new folder,
    anything else is the path of a checkpoint or of another run.
    ema_decay: keep a moving average of the weights, and evaluate it; null for none.
    keep_last, keep_best: checkpoints that rotation spares.
    on_non_finite: `stop` at a loss or gradient that is not finite, or `skip` that step's update.
    on_save_error: `continue` with a warning when a checkpoint cannot be written, or `stop`.
    tensorboard: also write TensorBoard files.
    """

    max_steps: Count = 1000
    seed: Annotated[int, Ge(0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: Count = 1
    clip_norm: Annotated[float, Gt(0)] | None = 1.0
    log_every: Count = 10
    evaluate_every: Count = 500
    checkpoint_every: Count = 500
    resume: str = "auto"
    ema_decay: Annotated[float, Ge(0), Lt(1)] | None = None
    keep_last: Count = 3
    keep_best: Annotated[int, Ge(0)] = 1
    on_non_finite: Literal["stop", "skip"] = "stop"
    on_save_error: Literal["continue", "stop"] = "continue"
    tensorboard: bool = False


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to. Losses are those of the last log; `evaluation` is the last one made.

    seconds: spent in training steps alone, resumed parts included; tokens: counted targets in that time.
    interrupted_by: the signal that ended the run early, None for a run that reached its last step.
    unsaved: why the last checkpoint could not be written, None if it was.
    """

    step: int
    tokens: int
    seconds: float
    train_loss: float | None
    train_nll: float | None
    evaluation: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    interrupted_by: signal.Signals | None = None
    unsaved: str | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def exit_code(self) -> int:
        """0 for a finished run, else 128 + the signal's number: 143 for SIGTERM, 130 for SIGINT."""
        return 0 if self.interrupted_by is None else 128 + self.interrupted_by
