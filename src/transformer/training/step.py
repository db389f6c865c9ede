"""One optimizer step: the recipe, and the check that keeps bad numbers out of the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from ..utils.rng import derive_seed
from .average import WeightAverage
from .config import TrainingConfig
from .objective import LossSum, Objective
from .optimizer import set_learning_rate
from .schedule import LearningRate
from .watch import first_non_finite_module, non_finite_gradients

B = TypeVar("B")


@dataclass(frozen=True)
class StepFigures:
    """What one step measured: sums over `count` targets, and the gradient's norm before clipping.

    problem: why the weights were left as they were, one line naming the place; None for a good step.
    """

    loss: float
    nll: float
    count: int
    gradient_norm: float
    problem: str | None = None


@runtime_checkable
class Stepped(Protocol):
    """A module that changes with every update of the weights, and not by a gradient."""

    def begin_step(self) -> None:
        """The forward passes of a step follow."""

    def end_step(self) -> None:
        """The step has updated the weights; of a step that is skipped nobody is told."""


class TrainingStep(Generic[B]):
    """Turns the micro-batches of one step into one update of the weights."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[B],
        optimizer: torch.optim.Optimizer,
        schedule: LearningRate,
        average: WeightAverage | None,
        config: TrainingConfig,
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.schedule, self.average, self.config = schedule, average, config
        self.device = next(model.parameters()).device
        self.stepped = [module for module in model.modules() if isinstance(module, Stepped)]

    def __call__(self, step: int, batches: Sequence[B]) -> StepFigures:
        """Make the update after `step` finished ones, unless a loss or gradient is not finite."""
        counts = [self.objective.count(batch) for batch in batches]
        self.optimizer.zero_grad(set_to_none=True)
        for module in self.stepped:
            module.begin_step()
        losses = [
            self._backward(batch, step, part, sum(counts))
            for part, batch in enumerate(batches)
            if counts[part]
        ]
        loss, nll, norm = self._measure(losses)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            problem = self._find_problem(batches, step, loss)
            self.optimizer.zero_grad(set_to_none=True)
            return StepFigures(loss, nll, sum(counts), norm, problem)
        self._clip(norm)
        set_learning_rate(self.optimizer, self.schedule(step + 1))
        self.optimizer.step()
        for module in self.stepped:
            module.end_step()
        if self.average:
            self.average.update(self.model, step + 1)
        return StepFigures(loss, nll, sum(counts), norm)

    def _backward(self, batch: B, step: int, part: int, total_count: int) -> LossSum:
        """Add the gradient of one micro-batch, weighted by the targets of all of them together.

        A mean of the micro-batches' means would not be the large batch where their counts differ.
        """
        loss = self._loss(batch, step, part)
        (loss.total / total_count).backward()  # type: ignore[no-untyped-call]
        return loss

    def _loss(self, batch: B, step: int, part: int) -> LossSum:
        seed = derive_seed(self.config.seed, "dropout", step, part)
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed spends 0.3 ms on devices that are not there
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        bfloat16 = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            return self.objective(self.model, _to_device(batch, self.device))

    def _measure(self, losses: Sequence[LossSum]) -> tuple[float, float, float]:
        """Return summed loss, summed NLL and the global gradient norm: the one place that waits for a GPU."""
        zero = torch.zeros((), device=self.device)
        loss = sum((loss.total.detach() for loss in losses), zero)
        nll = sum((loss.nll for loss in losses), zero)
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.model.parameters() if p.grad is not None)
        values = torch.stack([loss.double(), nll.double(), norm.double().to(self.device)]).tolist()
        return values[0], values[1], values[2]

    def _clip(self, norm: float) -> None:
        limit = self.config.clip_norm
        if limit is not None and norm > limit:
            total = torch.tensor(norm, device=self.device)
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, total)

    def _find_problem(self, batches: Sequence[B], step: int, loss: float) -> str:
        """Name the first module or parameter that went wrong, by running the forward passes again."""
        for part, batch in enumerate(batches):
            module = first_non_finite_module(self.model, lambda: self._loss(batch, step, part))  # noqa: B023
            if module:
                where = f"step {step + 1}, micro-batch {part + 1} of {len(batches)}"
                return f"{where}: loss {loss}; the first output that is not finite is that of {module}"
        if bad := non_finite_gradients(self.model):
            others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            return f"step {step + 1}: loss {loss:.4g}; the gradient of {bad[0]!r}{others} is not finite"
        return f"step {step + 1}: loss {loss}; every module's output is finite, so it is the loss itself"


def _to_device(batch: B, device: torch.device) -> B:
    """Return the batch with every tensor field on `device`; the same object where they already are."""
    data: Any = batch
    tensors = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    moved = {
        name: t.to(device, non_blocking=True) for name, t in tensors.items() if isinstance(t, torch.Tensor)
    }
    return (
        batch if all(moved[name] is tensors[name] for name in moved) else dataclasses.replace(data, **moved)
    )
