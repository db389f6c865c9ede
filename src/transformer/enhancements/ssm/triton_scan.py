"""Mamba's scan for GPUs, as Triton programs of our own (arXiv 2312.00752 §3.3.2; Triton: Tillet et al. 2019).

The paper's idea: states stay in a GPU's registers from the first token to the last, and nothing of size t · i · n is
written; the backward pass computes them again, from the state before each chunk. Its kernel scans a chunk in parallel
across threads; ours walks over time, in parallel over channels and rows only, which needs many of these to fill a GPU.
The gradients of B and C are summed over blocks of channels outside, so that every run gives the same bits.

Other shapes than Mamba's, and other numbers than float32, are computed chunk by chunk, and the log says so once.
Without a GPU the programs run in Triton's interpreter, which is how they are tested.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import triton_programs as programs
from .scan import continues, is_selective

logger = logging.getLogger(__name__)
CHUNK, BLOCK = 32, 32
"""Tokens between two states that are kept, and channels of a program: how to compute, not what."""


def has_triton(device: str) -> bool:
    """Whether the programs can run for tensors on such a device: a GPU, or any with Triton's interpreter."""
    if programs.compiler is None:
        return False
    return device == "cuda" or type(programs.forwards).__name__ == "InterpretedFunction"


def why_not(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    """Why these programs cannot compute this case; None if they can."""
    if programs.compiler is None:
        return "triton is not installed (pip install transformer-from-scratch[gpu])"
    if not has_triton(x.device.type):
        return "Triton's programs run on a GPU"
    if not is_selective(x, dt, A, B, C):
        return "these programs are for Mamba's shapes"
    return None if x.dtype == torch.float32 else "these programs compute in float32"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def triton_selective_scan(
    x: Float[Tensor, "b t h 1"],
    dt: Float[Tensor, "b t h"],
    A: Float[Tensor, "h n"],
    B: Float[Tensor, "b t 1 n"],
    C: Float[Tensor, "b t 1 n"],
    runs: Int[Tensor, "b t"] | None,
    initial: Inexact[Tensor, "b h n 1"],
) -> tuple[Float[Tensor, "b t h 1"], Float[Tensor, "b h n 1"]]:
    """The recurrence by Triton programs. A compiled model calls this as it is."""
    kept = None if runs is None else continues(runs, x)
    given = x[..., 0], dt, A, B[:, :, 0], C[:, :, 0], kept, initial[..., 0]
    out, last = _Triton.apply(*(y if y is None else y.contiguous() for y in given))  # type: ignore[no-untyped-call]
    return out[..., None], last[..., None]


class _Triton(torch.autograd.Function):
    """The two passes. Kept between them: the inputs, and the state before each chunk."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, kept, initial = given
        assert x is not None and A is not None and initial is not None
        found = x.new_empty(len(x), -(-x.shape[1] // CHUNK), *A.shape)
        out, last = torch.empty_like(x), torch.empty_like(initial)
        _launch(
            "forwards",
            x,
            A,
            x,
            dt,
            A,
            B,
            C,
            x if kept is None else kept,
            initial,
            out,
            found,
            last,
            packed=kept is not None,
        )
        ctx.save_for_backward(x, dt, A, B, C, kept, found)
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, kept, found = ctx.saved_tensors
        rows, blocks = len(x), -(-x.shape[2] // BLOCK)
        d_x, d_dt, d_initial = torch.empty_like(x), torch.empty_like(x), x.new_empty(rows, *A.shape)
        d_A, scratch = x.new_empty(rows, *A.shape), x.new_empty(rows, CHUNK + 1, *A.shape)
        d_B, d_C = (x.new_empty(blocks, *B.shape) for _ in range(2))
        given = (
            x,
            dt,
            A,
            B,
            C,
            x if kept is None else kept,
            found,
            slope.contiguous(),
            d_last.contiguous(),
            scratch,
        )
        made = d_x, d_dt, d_A, d_B, d_C, d_initial
        _launch("backwards", x, A, *given, *made, packed=kept is not None)
        return d_x, d_dt, d_A.sum(dim=0), d_B.sum(dim=0), d_C.sum(dim=0), None, d_initial


def _launch(name: str, x: Tensor, A: Tensor, *arguments: Tensor | None, packed: bool) -> None:
    """Run a program: one instance for each block of channels and each row."""
    wide = 1 << (A.shape[1] - 1).bit_length()
    constants = {"PACKED": packed, "N": A.shape[1], "WIDE_N": wide, "CHUNK": CHUNK, "BLOCK": BLOCK}
    grid = (-(-x.shape[2] // BLOCK), len(x))
    with torch.cuda.device(x.device) if x.is_cuda else torch.no_grad():
        getattr(programs, name)[grid](*arguments, x.shape[1], x.shape[2], **constants)


def tell_once(reason: str) -> None:
    """Log why another form takes the programs' place; a log has no place in a compiled graph."""
    if not torch.compiler.is_compiling():
        _tell(reason)


@cache
def _tell(reason: str) -> None:
    logger.info("the scan triton computes chunk by chunk: %s", reason)
