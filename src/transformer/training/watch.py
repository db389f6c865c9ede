"""Watching numbers go wrong: naming what is not finite, and marking losses that jump."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteError(FloatingPointError):
    """A loss or gradient was not finite; the weights are those of the last good step."""


class SpikeDetector:
    """Mark a loss more than `sigmas` standard deviations above the mean of the last `window` losses."""

    def __init__(self, window: int = 128, sigmas: float = 6.0, *, minimum: int = 32) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.sigmas = sigmas
        self.minimum = minimum

    def is_spike(self, loss: float) -> bool:
        """Compare `loss` with the window, then add it."""
        spike = False
        if len(self.recent) >= self.minimum:
            mean = sum(self.recent) / len(self.recent)
            variance = sum((recent - mean) ** 2 for recent in self.recent) / len(self.recent)
            spike = loss > mean + self.sigmas * math.sqrt(variance)
        self.recent.append(loss)
        return spike


def first_non_finite_module(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """Run `forward` and return the first module of `model` that turns finite inputs into other outputs.

    Costs one forward pass, so it is called only once a loss is known to be bad. A module whose own
    parameters are not finite is named with the parameter. None: every module's outputs are finite.
    """
    found: list[str] = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all_finite(_tensors(output)):
                bad = [p_name for p_name, p in module.named_parameters() if not all_finite([p])]
                because = f", whose parameter {bad[0]!r} is not finite" if bad else ""
                found.append(f"{name or 'the model'} ({type(module).__name__}){because}")

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def non_finite_gradients(model: nn.Module) -> list[str]:
    """Return the names of parameters with a gradient that is not finite, those nearest the loss first.

    Gradients flow from the loss to the inputs, and modules are registered in the opposite order.
    """
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not all_finite([p.grad])]
    return bad[::-1]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds an infinity or NaN."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in _tensors(part)]
    return []
