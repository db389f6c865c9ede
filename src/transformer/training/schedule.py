"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no schedule state.

Steps count from 1: the first update is made with `rate(1)`, the last with `rate(max_steps)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from annotated_types import Ge, Gt, Le

LearningRate = Callable[[int], float]
Fraction = Annotated[float, Ge(0), Le(1)]


@runtime_checkable
class ScheduleConfig(Protocol):
    """A schedule before the run's size is known."""

    kind: ClassVar[str]

    def build(self, *, d_model: int, max_steps: int) -> LearningRate:
        """Return the learning rate as a function of the step (from 1)."""


@dataclass(frozen=True)
class Noam:
    """k · d_model^-0.5 · min(s^-0.5, s · warmup^-1.5): rise, then inverse square root (1706.03762 §5.3).

    Its peak, at s = warmup, is k / √(d_model · warmup): 6.99e-4 for the base model's 512 and 4000.
    """

    kind: ClassVar[str] = "noam"
    factor: Annotated[float, Gt(0)] = 1.0
    warmup_steps: Annotated[int, Ge(1)] = 4000

    def build(self, *, d_model: int, max_steps: int) -> LearningRate:
        scale = self.factor * d_model**-0.5
        return lambda step: scale * min(step**-0.5, step * self.warmup_steps**-1.5)


@dataclass(frozen=True)
class Cosine:
    """Linear rise to `learning_rate`, half a cosine down to `final_fraction` of it (1608.03983 eq. 5)."""

    kind: ClassVar[str] = "cosine"
    learning_rate: Annotated[float, Gt(0)] = 6e-4
    warmup_steps: Annotated[int, Ge(0)] = 2000
    final_fraction: Fraction = 0.1

    def build(self, *, d_model: int, max_steps: int) -> LearningRate:
        _require_room("cosine", "warmup_steps", self.warmup_steps, max_steps)

        def rate(step: int) -> float:
            if step <= self.warmup_steps:
                return self.learning_rate * step / self.warmup_steps
            progress = min(1.0, (step - self.warmup_steps) / (max_steps - self.warmup_steps))
            share = self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * progress)) / 2
            return self.learning_rate * share

        return rate


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear rise, long plateau, short decay over the last `decay_fraction` of the run (2404.06395 §4).

    decay: `linear`, or `sqrt` for 1 - √progress, which falls faster at first (2405.18392 §3).
    """

    kind: ClassVar[str] = "wsd"
    learning_rate: Annotated[float, Gt(0)] = 6e-4
    warmup_steps: Annotated[int, Ge(0)] = 500
    decay_fraction: Fraction = 0.2
    decay: Literal["linear", "sqrt"] = "linear"
    final_fraction: Fraction = 0.0

    def build(self, *, d_model: int, max_steps: int) -> LearningRate:
        decay_steps = round(self.decay_fraction * max_steps)
        _require_room("wsd", "warmup_steps + decay", self.warmup_steps + decay_steps, max_steps + 1)
        power = {"linear": 1.0, "sqrt": 0.5}[self.decay]

        def rate(step: int) -> float:
            if step <= self.warmup_steps:
                return self.learning_rate * step / self.warmup_steps
            decayed = step - (max_steps - decay_steps)
            if decayed <= 0:
                return self.learning_rate
            progress = min(1.0, decayed / decay_steps)
            return self.learning_rate * (1 - (1 - self.final_fraction) * math.pow(progress, power))

        return rate


@dataclass(frozen=True)
class Constant:
    """One learning rate throughout, after an optional linear rise."""

    kind: ClassVar[str] = "constant"
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    warmup_steps: Annotated[int, Ge(0)] = 0

    def build(self, *, d_model: int, max_steps: int) -> LearningRate:
        return lambda step: self.learning_rate * min(1.0, step / max(1, self.warmup_steps))


def _require_room(kind: str, name: str, steps: int, max_steps: int) -> None:
    if steps >= max_steps:
        raise ValueError(
            f"schedule {kind}: {name} = {steps} leaves no step of the run's {max_steps}; "
            f"lower it, or raise training.max_steps"
        )
