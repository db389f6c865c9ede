"""FlashAttention-2 for GPUs, as Triton programs of our own (arXiv 2307.08691 §3; Triton: Tillet et al. 2019).

The algorithm of `flash`, where it pays: a tile stays in a GPU's fast memory from the products to the weighted values,
so nothing of size t × s is ever written. Queries run outside in the forward pass, one program a block, as the paper
has it. The backward pass is two kernels, one over blocks of queries and one over blocks of keys, instead of the
paper's one with atomic additions: products are computed once more, and every run gives the same bits. Heads of a
group add up their gradients inside a program. A tile that the mask empties is skipped; where queries are the keys,
unpadded and unpacked, loops end at the diagonal and at the window.

Soft caps, sinks, windows, padding, documents and cached keys are computed here; a dense bias, dropout, float64 and
heads wider than 256 by the definition, and the log says so once. Block sizes are tuned at the first call for each
head width and kind of mask, and not for each length. Without a GPU the programs run in Triton's interpreter, which is
how they are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...base.sockets import Pairs, Scoring
from . import triton_kernels as kernels
from .routing import by_definition
from .tiles import autocast_inputs

WIDEST = 256
"""The widest head whose tiles fit a GPU's fast memory."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def triton_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    pairs: Pairs,
    scoring: Scoring,
) -> Float[Tensor, "b h t _"]:
    """Attention by Triton programs. A query that sees no key gives zeros. A compiled model calls this as it is."""
    q, k, v = autocast_inputs(q, k, v)
    reason = _why_not(q, k, v, pairs, scoring)
    if reason is not None:
        return by_definition(q, k, v, pairs, scoring, kernel="triton", reason=reason)
    return _Triton.apply(q, k, v, scoring.sinks, pairs, scoring)  # type: ignore[no-any-return, no-untyped-call]


def has_triton(device: str) -> bool:
    """Whether the programs can run for tensors on such a device: a GPU, or any with Triton's interpreter."""
    if kernels.compiler is None:
        return False
    return device == "cuda" or type(kernels.forwards).__name__ == "InterpretedFunction"


def _why_not(q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, scoring: Scoring) -> str | None:
    """Why these programs cannot compute this case; None if they can."""
    if kernels.compiler is None:
        return "triton is not installed (pip install transformer-from-scratch[gpu])"
    if not has_triton(q.device.type):
        return "Triton's programs run on a GPU"
    if pairs.bias is not None:
        return "a dense bias is not read by these programs"
    if scoring.dropout:
        return "these programs have no dropout"
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies no bfloat16"
    if not (q.dtype == k.dtype == v.dtype and q.dtype in DTYPES):
        return "these programs take float16, bfloat16 or float32, one for all inputs"
    if max(q.shape[3], v.shape[3]) > WIDEST:
        return f"these programs take heads up to {WIDEST} wide"
    return None


class _Triton(torch.autograd.Function):
    """The two passes. Only inputs, output and L are kept between them."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, pairs: Pairs, scoring: Scoring
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = q.new_empty(*q.shape[:3], v.shape[3])
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        numbers, constants = _settings(q, k, v, pairs, scoring)
        extra = {"SINKS": sinks is not None}
        score = lse if sinks is None else sinks.contiguous()
        _launch("forwards", q.shape[2], q.shape[0] * q.shape[1], q.device)(
            q, k, v, out, lse, score, *numbers, constants={**constants, **extra}
        )
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.settings = numbers, constants
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, lse = ctx.saved_tensors
        numbers, constants = ctx.settings
        slope, (d_q, d_k, d_v) = slope.contiguous(), (torch.empty_like(x) for x in (q, k, v))
        delta = (slope.float() * out.float()).sum(dim=-1)
        given = (q, k, v, slope, lse, delta)
        _launch("backward_queries", q.shape[2], q.shape[0] * q.shape[1], q.device)(
            *given, d_q, *numbers, constants=constants
        )
        _launch("backward_keys", k.shape[2], k.shape[0] * k.shape[1], q.device)(
            *given, d_k, d_v, *numbers, constants=constants
        )
        d_sinks = None
        if sinks is not None:
            d_sinks = -(torch.exp(sinks.float()[None, :, None] - lse) * delta).sum(dim=(0, 2)).to(sinks.dtype)
        return d_q, d_k, d_v, d_sinks, None, None


def _settings(
    q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, scoring: Scoring
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that all three programs share: arrays and numbers, and constants to compile with."""
    queries, keys, mask = pairs.queries, pairs.keys, pairs.mask
    packed = queries.documents is not None and keys.documents is not None
    at = [x.positions for x in (queries, keys)]
    real = at[1] if keys.real is None else keys.real
    documents = [queries.documents, keys.documents] if packed else at
    arrays = [
        x.expand(len(q), -1).to(torch.int32).contiguous() for x in (*at, real, *documents) if x is not None
    ]
    numbers = [scoring.scale, scoring.soft_cap or 1.0, mask.window or 0, q.shape[2], k.shape[2]]
    constants = {
        "CAUSAL": mask.causal,
        "WINDOWED": mask.window is not None,
        "PADDED": keys.real is not None,
        "PACKED": packed,
        "ORDERED": keys is queries and keys.real is None and keys.documents is None,
        "CAPPED": scoring.soft_cap is not None,
        "E": q.shape[3],
        "V": v.shape[3],
        "WIDE_E": _power(q.shape[3]),
        "WIDE_V": _power(v.shape[3]),
    }
    return [*arrays, *numbers, q.shape[1], q.shape[1] // k.shape[1]], constants


def _power(width: int) -> int:
    """The power of two that holds `width`, at least the 16 of a product of matrices."""
    return max(16, 1 << (width - 1).bit_length())


def _launch(name: str, length: int, heads: int, device: torch.device) -> Callable[..., None]:
    """A program ready to be called: one instance for each block and head."""
    side = "COLUMNS" if name == "backward_keys" else "ROWS"

    def grid(chosen: dict[str, Any]) -> tuple[int, int]:
        return (-(-length // chosen[side]), heads)

    def call(*arguments: Any, constants: Mapping[str, Any]) -> None:
        if device.type == "cuda":
            with torch.cuda.device(device):
                _tuned(name)[grid](*arguments, **constants)
        else:  # interpreted
            getattr(kernels, name)[grid](*arguments, **constants, ROWS=32, COLUMNS=32)

    return call


@cache
def _tuned(name: str) -> Any:
    """A program that tries some block sizes for each head width and kind of mask, and keeps the fastest."""
    triton: Any = kernels.compiler
    sizes = [(128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (64, 32, 4), (32, 32, 4)]
    configs = [
        triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps, num_stages=stages)
        for rows, columns, warps in sizes
        for stages in (2, 3)
    ]
    key = ["E", "V", "CAUSAL", "WINDOWED", "PADDED", "PACKED", "ORDERED", "CAPPED"]
    return triton.autotune(configs=configs, key=key)(getattr(kernels, name))
