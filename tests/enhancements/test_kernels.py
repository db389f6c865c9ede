"""The fused kernel is the same function as the naive one: mask × bias × length × precision, values and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from transformer.base import scaled_dot_product_attention
from transformer.base.sockets import Kernel, Layout, Mask, Pairs, Position, Scoring
from transformer.enhancements import sdpa_attention

BATCH, HEADS, WIDTH = 3, 2, 8


class GivenBias(Position):
    """A bias to differentiate by."""

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self.value = value

    def bias(self, queries: Layout, keys: Layout) -> Tensor | None:
        return self.value


@dataclass(frozen=True)
class Case:
    mask: Mask
    queries: Layout
    keys: Layout


def case(kind: str, length: int) -> Case:
    index = torch.arange(length)
    blank = torch.zeros(BATCH, length, dtype=torch.long)
    plain = Layout.of(blank)
    lengths = torch.tensor([length, (length + 1) // 2, 1])[:, None]
    left, right = Layout.of(blank, index >= length - lengths), Layout.of(blank, index < lengths)
    empty = Layout.of(blank, (index < lengths) & (torch.arange(BATCH) != 1)[:, None])
    packed = Layout.of(blank, documents=(index // 5).expand(BATCH, -1))
    last = plain.select(index[length // 2 :].expand(BATCH, -1))
    causal = Mask(causal=True)
    return {
        "all": Case(Mask(), plain, plain),
        "causal": Case(causal, plain, plain),
        "left": Case(causal, left, left),
        "right": Case(Mask(), right, right),
        "empty": Case(causal, empty, empty),
        "packed": Case(causal, packed, packed),
        "window": Case(Mask(causal=True, window=4), plain, plain),
        "cached": Case(causal, last, plain),
        "cross": Case(Mask(), last, right),
    }[kind]


KINDS = ("all", "causal", "left", "right", "empty", "packed", "window", "cached", "cross")


def attend(
    kernel: Kernel, given: Case, inputs: list[Tensor], biased: bool, dtype: torch.dtype
) -> list[Tensor]:
    """The output and the gradients by queries, keys, values and bias, of copies of `inputs` in `dtype`."""
    leaves = [x.detach().clone().to(dtype).requires_grad_() for x in inputs]
    q, k, v, bias, slope = leaves
    pairs = Pairs(given.queries, given.keys, given.mask, GivenBias(bias if biased else None))
    out = kernel(q, k, v, pairs, Scoring(0.3))
    out.backward(slope.detach())
    return [out.detach(), *(x.grad for x in leaves[: 4 if biased else 3] if x.grad is not None)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("length", [1, 7, 64, 127])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"]
)
def test_the_kernels_are_the_same_function(kind: str, biased: bool, length: int, dtype: torch.dtype) -> None:
    given = case(kind, length)
    t = given.queries.positions.shape[1]
    shapes = [(t, WIDTH), (length, WIDTH), (length, WIDTH), (t, length), (t, WIDTH)]
    inputs = [torch.randn(BATCH, HEADS, *shape, dtype=torch.float64).to(dtype).double() for shape in shapes]
    exact = attend(scaled_dot_product_attention, given, inputs, biased, torch.float64)
    naive = attend(scaled_dot_product_attention, given, inputs, biased, dtype)
    fused = attend(sdpa_attention, given, inputs, biased, dtype)
    assert len(fused) == len(exact) == (5 if biased else 4)
    for truth, reference, result in zip(exact, naive, fused, strict=True):
        assert result.dtype == dtype and result.isfinite().all()
        error, own = ((x - truth).abs().max().item() for x in (result, reference))
        # bfloat16: within twice the naive kernel's own error, and one rounding of the largest entry
        coarse = 2 * own + 2**-8 * truth.abs().max().item()
        assert error <= {torch.float64: 1e-10, torch.float32: 2e-5}.get(dtype, coarse)


@pytest.mark.parametrize("kernel", [scaled_dot_product_attention, sdpa_attention])
def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(kernel: Kernel) -> None:
    given = case("empty", 7)
    inputs = [torch.randn(BATCH, HEADS, 7, w, dtype=torch.float64) for w in (WIDTH, WIDTH, WIDTH, 7, WIDTH)]
    for result in attend(kernel, given, inputs, True, torch.float64):
        assert not result[1].any() and result[0].any()


@pytest.mark.parametrize("kernel", [scaled_dot_product_attention, sdpa_attention])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_huge_scores_are_still_masked_exactly(kernel: Kernel, scale: float) -> None:
    """No large negative number stands for −∞: later keys have no weight however large their scores are."""
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    layout = Layout.of(torch.zeros(1, 9).long())
    pairs = Pairs(layout, layout, Mask(causal=True), Position())
    out = kernel(q * scale, k, v, pairs, Scoring(0.3))
    k[:, :, 5:], v[:, :, 5:] = 1e4, 1e4
    assert torch.equal(kernel(q * scale, k, v, pairs, Scoring(0.3))[:, :, :5], out[:, :, :5])
    assert out.isfinite().all()


@pytest.mark.parametrize("kernel", [scaled_dot_product_attention, sdpa_attention])
def test_dropout_drops_weights_and_keeps_their_mean(kernel: Kernel) -> None:
    """With values of one the output of a head is the sum of its kept weights over 1 − p."""
    layout = Layout.of(torch.zeros(64, 40).long())
    pairs = Pairs(layout, layout, Mask(causal=True), Position())
    q = torch.zeros(64, 4, 40, 8)
    out = kernel(q, q, torch.ones_like(q), pairs, Scoring(1.0, 0.25))
    assert abs(out.mean().item() - 1) < 0.02
    kept = out[:, :, 0, 0] * 0.75  # the first query has one key: kept or not
    assert set(kept.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert abs(kept.mean().item() - 0.75) < 0.12


def test_the_triangle_is_claimed_only_where_the_mask_is_one() -> None:
    claimed = {
        kind: Pairs(c.queries, c.keys, c.mask, Position()).triangular
        for kind in KINDS
        for c in [case(kind, 9)]
    }
    assert [kind for kind, is_claimed in claimed.items() if is_claimed] == ["causal"]
