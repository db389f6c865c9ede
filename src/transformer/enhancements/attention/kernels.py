"""The one table of attention kernels, and which of them is best where.

All compute the same function; what each cannot do the definition does in its place, logged once. Which can do what is
in the table of docs/enhancements/kernels.md, and how they compare in docs/results/attention_kernels.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.sockets import Kernel, Pairs, Scoring
from .chunked import chunked_attention
from .flash import flash_attention
from .flex import flex_attention
from .naive import naive_attention
from .sdpa import sdpa_attention
from .triton_flash import has_triton, triton_attention

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "naive": naive_attention,
        "flash": flash_attention,
        "chunked": chunked_attention,
        "sdpa": sdpa_attention,
        "flex": flex_attention,
        "triton": triton_attention,
    }
)
SHORT = 1024
"""Keys up to which the definition is faster than PyTorch's kernel for CPUs in bfloat16; half under a plain triangle."""


def best_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    pairs: Pairs,
    scoring: Scoring,
) -> Float[Tensor, "b h t _"]:
    """Attention by the kernel that is best for the device and the case: what `use_flash_attention` stands for."""
    return _best(q, k, pairs, scoring)(q, k, v, pairs, scoring)


def _best(q: Tensor, k: Tensor, pairs: Pairs, scoring: Scoring) -> Kernel:
    """Choose by device, precision, length and kind of score.

    On a CPU PyTorch's kernel is slower than the definition in bfloat16 until sequences are long. It has no soft cap:
    there long sequences go tile by tile. On a GPU Triton's programs do what PyTorch's cannot without a dense mask.
    """
    device = q.device.type
    autocast = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else q.dtype
    capped, short = scoring.soft_cap is not None, k.shape[2] <= SHORT // (2 if pairs.triangular else 1)
    if device == "cuda":
        ours = (capped or scoring.sinks is not None) and pairs.bias is None and not scoring.dropout
        return triton_attention if ours and has_triton(device) else sdpa_attention
    if (capped or dtype == torch.bfloat16) and (short or torch.compiler.is_compiling()):
        return naive_attention
    return flash_attention if capped else sdpa_attention
