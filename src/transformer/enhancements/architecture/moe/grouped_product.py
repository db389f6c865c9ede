"""A product of rows with matrices where neighbouring rows share a matrix, as one operation.

    y_r = x_r W_eᵀ,   e the expert of row r;   the first n_0 rows are expert 0's, the next n_1 expert 1's, …

It is an operation of its own (`torch.library`), because its shapes do not depend on who chose whom: a compiler, a
counter of operations and PyTorch's tensors without data see one product of known size, and autograd one node. Rows
after the last expert's belong to none and become zeros.

On a GPU it is PyTorch's `_grouped_mm` where that serves the type and the strides, without waiting for the counts;
otherwise, and on a CPU (where the same was 1.3 times as slow), one product for each expert that has rows.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = __name__.replace(".", "_")  # the package may be imported under two names
ALIGNMENT = 16  # bytes


@torch.library.custom_op(
    f"{NAMESPACE}::product", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor counts) -> Tensor"
)
def grouped_product(
    x: Float[Tensor, "_ _"], weight: Float[Tensor, "x _ _"], counts: Int[Tensor, " x"]
) -> Float[Tensor, "_ _"]:
    """Multiply each row by the transpose of its expert's matrix (`Float[x out in]`)."""
    if _fused(x, weight):
        y = torch._grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
        beyond = torch.arange(len(x), device=x.device) >= counts.sum()
        return y.masked_fill_(beyond[:, None], 0)
    y = x.new_empty(len(x), weight.shape[1])
    begin = 0
    for matrix, count in zip(weight.unbind(), counts.tolist(), strict=True):
        rows = slice(begin, begin := begin + count)
        torch.mm(x[rows], matrix.T, out=y[rows])
    y[begin:].zero_()
    return y


@torch.library.custom_op(
    f"{NAMESPACE}::outer", mutates_args=(), schema="(Tensor dy, Tensor x, Tensor counts) -> Tensor"
)
def grouped_outer(
    dy: Float[Tensor, "_ _"], x: Float[Tensor, "_ _"], counts: Int[Tensor, " x"]
) -> Float[Tensor, "x _ _"]:
    """Σ over each expert's rows of dy xᵀ: the gradient of its matrix."""
    if _fused(dy, x):
        return torch._grouped_mm(dy.T, x, offs=counts.cumsum(0, dtype=torch.int32))
    matrices = x.new_empty(len(counts), dy.shape[1], x.shape[1])
    begin = 0
    for matrix, count in zip(matrices.unbind(), counts.tolist(), strict=True):
        rows = slice(begin, begin := begin + count)
        torch.mm(dy[rows].T, x[rows], out=matrix)  # zeros, where there is no row
    return matrices


@grouped_product.register_fake
def _(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(dy: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(counts.shape[0], dy.shape[1], x.shape[1])


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, counts = ctx.saved_tensors
    dy = dy.contiguous()
    by_x = grouped_product(dy, weight.transpose(1, 2), counts) if ctx.needs_input_grad[0] else None
    by_weight = grouped_outer(dy, x, counts) if ctx.needs_input_grad[1] else None
    return by_x, by_weight, None


def _outer_backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    dy, x, counts = ctx.saved_tensors
    by_dy = grouped_product(x, dw, counts) if ctx.needs_input_grad[0] else None
    by_x = grouped_product(dy, dw.transpose(1, 2), counts) if ctx.needs_input_grad[1] else None
    return by_dy, by_x, None


grouped_product.register_autograd(_backward, setup_context=_remember)
grouped_outer.register_autograd(_outer_backward, setup_context=_remember)


def _fused(*operands: Tensor) -> bool:
    """Whether `_grouped_mm` computes this."""
    return all(
        x.is_cuda
        and x.dtype == torch.bfloat16
        and all(stride == 1 or stride * x.element_size() % ALIGNMENT == 0 for stride in x.stride())
        for x in operands
    )


@register_flop_formula(getattr(torch.ops, NAMESPACE).product)
def _product_flops(x: Any, weight: Any, counts: Any, out_shape: Any = None) -> int:
    return 2 * int(x[0]) * int(weight[1]) * int(weight[2])


@register_flop_formula(getattr(torch.ops, NAMESPACE).outer)
def _outer_flops(dy: Any, x: Any, counts: Any, out_shape: Any = None) -> int:
    return 2 * int(x[0]) * int(x[1]) * int(dy[1])
