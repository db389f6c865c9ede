"""Averages of weights: a running one kept while training, and the paper's mean of the last checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's parameters: a ← δ·a + (1-δ)·θ after every step.

    decay: δ in [0, 1). With `warmup`, step s uses min(δ, (1+s)/(10+s)), so that a short run is not an average
    of its random start. The decay is a function of the step, so the averaged tensors are the whole state.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {decay}; 0.999 suits some thousands of steps")
        self.decay = decay
        self.warmup = warmup
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters()}

    def decay_at(self, step: int) -> float:
        """Return δ for the update after optimizer step `step` (from 1)."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        torch._foreach_lerp_(list(self.tensors.values()), list(model.parameters()), 1 - self.decay_at(step))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the averages of a checkpoint. Raise ValueError where names differ."""
        if differing := self.tensors.keys() ^ tensors.keys():
            raise ValueError(f"the checkpoint's weight average does not fit this model: {min(differing)!r}")
        for name, average in self.tensors.items():
            average.copy_(tensors[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Let `model` hold the averaged weights inside a `with` block, and its own again afterwards."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _assign(model, self.tensors)
        try:
            yield
        finally:
            _assign(model, own)


def average_checkpoints(weights: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of several checkpoints' weights (1706.03762 §6.1 takes the last 5, or 20 for `big`).

    Floating tensors are averaged in float64 and keep their dtype; others come from the last checkpoint.
    One checkpoint is in memory at a time. Raise ValueError for none, or for checkpoints of different models.
    """
    count = 0
    sums: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    for count, last in enumerate(weights, start=1):
        floating = {name: t.double() for name, t in last.items() if t.is_floating_point()}
        if count > 1 and (differing := floating.keys() ^ sums.keys()):
            raise ValueError(
                f"cannot average checkpoints of different models: {min(differing)!r} is not in all"
            )
        sums = {name: sums[name] + t if name in sums else t for name, t in floating.items()}
    if count == 0:
        raise ValueError("cannot average 0 checkpoints; train until the first one is saved")
    means = {name: (total / count).to(last[name].dtype) for name, total in sums.items()}
    return {**last, **means}


@torch.no_grad()
def _assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
