"""Inputs of the recurrence in the shapes of each model, and how two forms of it are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BATCH = 2
SHAPES = {"mamba": (7, 1, 5, 1, 5), "mamba2": (6, 4, 5, 2, 1), "s4d": (7, 1, 4, 7, 4)}
"""Heads, their width, states, groups, decays of a head."""


def inputs(kind: str, length: int, dtype: torch.dtype = torch.float64, strength: float = 2.0) -> list[Tensor]:
    """x, dt, A, B, C and the state before them: all with gradients."""
    h, e, n, k, decays = SHAPES[kind]
    x = torch.randn(BATCH, length, h, e, dtype=torch.float64)
    A: Any = -strength * torch.rand(h, decays, dtype=torch.float64)
    dt, narrow = torch.rand(BATCH, length, h, dtype=torch.float64), (BATCH, length, k, n)
    if kind == "s4d":
        A, narrow = torch.complex(A, 3 * torch.randn_like(A)), (1, 1, k, n)
        dt = torch.ones(1, 1, 1, dtype=torch.float64)
    B, C = (torch.randn(*narrow, dtype=A.dtype) for _ in range(2))
    initial = torch.randn(BATCH, h, n, e, dtype=A.dtype)
    wide = {torch.float32: torch.complex64}.get(dtype, torch.complex128)
    return [y.to(wide if y.is_complex() else dtype).requires_grad_() for y in (x, dt, A, B, C, initial)]


def documents(length: int) -> Tensor:
    """Documents of many lengths, other ones in each row."""
    return torch.rand(BATCH, length).lt(0.06).cumsum(1)


def slopes(out: Tensor, state: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Outputs and last state, and their gradients along fixed random directions."""
    generator = torch.Generator().manual_seed(1)
    parts = [out, *([state.real, state.imag] if state.is_complex() else [state])]
    drawn = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in parts]
    total = sum((y * direction.to(y)).sum() for y, direction in zip(parts, drawn, strict=True))
    return [out, state, *torch.autograd.grad(total, leaves)]


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal up to `tolerance`, relative to the largest entry."""
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all() and b.isfinite().all()
        assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())
