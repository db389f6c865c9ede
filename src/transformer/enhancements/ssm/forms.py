"""The one table of forms of the recurrence, which of them is best where, and how a mixer calls one.

All compute the same function (`scan.py`). Where a form does not suit the shapes of a call, another one takes its place;
docs/enhancements/state_space.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from ...base.sockets import Context
from ..attention.recurrence import RecurrentState, Segments, without_autocast
from .dual import dual_scan
from .invariant import fft_scan, is_invariant, toeplitz_scan
from .scan import Scan, associative_scan, is_selective, sequential_scan, step_scan
from .selective import selective_scan
from .triton_scan import tell_once, triton_selective_scan, why_not

Choice = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, "Tensor | None"], Scan]


def _chosen_by(choice: Choice, name: str, doc: str) -> Scan:
    """Return the form that looks at each call and hands it to another."""

    def scan(
        x: Float[Tensor, "b t h e"],
        dt: Float[Tensor, "#b #t #h"],
        A: Inexact[Tensor, "h #n"],
        B: Inexact[Tensor, "#b #t k n"],
        C: Inexact[Tensor, "#b #t k n"],
        runs: Int[Tensor, "b t"] | None,
        initial: Inexact[Tensor, "b h n e"],
    ) -> tuple[Float[Tensor, "b t h e"], Inexact[Tensor, "b h n e"]]:
        """Compute the recurrence in the form that `choice` names for it."""
        return choice(x, dt, A, B, C, runs)(x, dt, A, B, C, runs, initial)

    scan.__name__ = scan.__qualname__ = name
    scan.__doc__ = doc
    return scan


def _best(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, runs: Tensor | None) -> Scan:
    """Choose by device and length. A loop over tokens, however lean, leaves a GPU waiting."""
    if x.shape[1] == 1:
        return step_scan
    chosen = _chunked(x, dt, A, B, C, runs)
    if chosen is not selective_scan or x.device.type != "cuda":
        return chosen
    return triton_selective_scan if why_not(x, dt, A, B, C) is None else associative_scan


def _chunked(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, runs: Tensor | None) -> Scan:
    """Choose by shape. A compiler follows no pass of ours: it is given the associative form to fuse."""
    if A.is_complex():
        return toeplitz_scan if is_invariant(dt, B, C, runs) else associative_scan
    if A.shape[1] == 1 and dt.shape == x.shape[:3] and B.shape[:2] == C.shape[:2] == x.shape[:2]:
        return dual_scan
    plain = not torch.compiler.is_compiling()
    return selective_scan if plain and is_selective(x, dt, A, B, C) else associative_scan


def _convolution(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, runs: Tensor | None) -> Scan:
    """Fourier transforms where nothing depends on the token."""
    invariant = A.is_complex() and is_invariant(dt, B, C, runs)
    return fft_scan if invariant else _chunked(x, dt, A, B, C, runs)


def _triton(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, runs: Tensor | None) -> Scan:
    """Triton programs where they can compute it."""
    reason = why_not(x, dt, A, B, C)
    if reason is None:
        return triton_selective_scan  # type: ignore[no-any-return]
    tell_once(reason)
    return _chunked(x, dt, A, B, C, runs)


chunked_scan = _chosen_by(
    _chunked, "chunked_scan", "The recurrence chunk by chunk, in the way that suits its shapes."
)
convolution_scan = _chosen_by(
    _convolution,
    "convolution_scan",
    "The recurrence by Fourier transforms where nothing depends on the token, else chunk by chunk.",
)
best_scan = _chosen_by(
    _best, "best_scan", "The recurrence in the form that is best for the device and the case."
)
triton_scan = _chosen_by(
    _triton,
    "triton_scan",
    "The recurrence by Triton programs where they can compute it, else chunk by chunk.",
)


def _nothing(x: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    """What every form is of no tokens."""
    *_, initial = others
    assert initial is not None
    return x, initial


SCANS: Mapping[str, Scan] = MappingProxyType(
    {
        "sequential": sequential_scan,
        "associative": associative_scan,
        "chunked": chunked_scan,
        "convolution": convolution_scan,
        "triton": triton_scan,
    }
)


def run_scan(
    x: Float[Tensor, "b t h e"],
    dt: Float[Tensor, "#b #t #h"],
    A: Inexact[Tensor, "h #n"],
    B: Inexact[Tensor, "#b #t k n"],
    C: Inexact[Tensor, "#b #t k n"],
    segments: Segments,
    state: RecurrentState | None,
    context: Context,
) -> Float[Tensor, "b t h e"]:
    """Run the recurrence in float32 or better, over real tokens only, from the state and back to it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        x, dt, A, B, C = (y if y.is_complex() else y.to(wide) for y in (x, dt, A, B, C))
        if segments.real is not None:
            dt = dt * segments.real[:, :, None].to(wide)
        shape = len(x), x.shape[2], B.shape[3], x.shape[3]
        kept = {} if state is None else state.tensors
        initial = kept["states"] if "states" in kept else torch.zeros(shape, dtype=A.dtype, device=x.device)
        scan = (context.execution.scan or best_scan) if x.shape[1] else _nothing
        out, last = scan(x, dt, A, B, C, segments.runs, initial)
    if state is not None:
        state.tensors["states"] = last
    return out
