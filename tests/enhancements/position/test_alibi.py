"""ALiBi: its slopes for any number of heads, and attention with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.base.test_references import (
    HEADS,
    LENGTHS,
    WIDTH,
    array,
    compare,
    context_of,
    each_precision,
    inputs,
    randomized,
    weights_of,
)
from tests.catalog import each_kernel
from tests.enhancements.position import definitions
from tests.enhancements.position.helpers import ragged, seen
from transformer.base import MultiHeadAttention
from transformer.base.sockets import Kernel, Layout, Mask
from transformer.enhancements.position.alibi import ALiBi, slope_exponents


def test_slopes_by_hand() -> None:
    assert slope_exponents(1) == [-8]
    assert slope_exponents(4) == [-2, -4, -6, -8]
    assert slope_exponents(8) == [-1, -2, -3, -4, -5, -6, -7, -8]
    assert slope_exponents(12) == [-1, -2, -3, -4, -5, -6, -7, -8, -0.5, -1.5, -2.5, -3.5]
    assert slope_exponents(3) == [-4, -8, -2]
    for n in (2, 5, 6, 7, 16, 20, 31, 33, 100):
        expected = [definitions.alibi_slope(head, n) for head in range(n)]
        assert np.abs(2 ** np.array(slope_exponents(n)) / expected - 1).max() <= 1e-15
        assert len(set(slope_exponents(n))) == n


@each_precision
@each_kernel
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_attention_with_alibi_is_its_definition(
    causal: bool, kernel: Kernel, dtype: torch.dtype, tolerance: float
) -> None:
    layout, positions = ragged()
    module, x = randomized(MultiHeadAttention(WIDTH, HEADS, bias=True), dtype), inputs(max(LENGTHS), dtype)
    visible = seen(positions, causal)

    def head(row: int, h: int, q: Any, k: Any, v: Any) -> Any:
        distance = np.abs(positions[row][:, None] - positions[row][None, :])
        bias = -definitions.alibi_slope(h, HEADS) * distance
        value, back = definitions.biased_head(q, k, v, visible[row], bias)
        return value, lambda dy: {n: g for n, g in back(dy).items() if n != "bias"}

    expected = definitions.attention_layer(array(x), weights_of(module), HEADS, head)
    position = ALiBi(HEADS).to(dtype)
    compare(
        module(x, context_of(kernel, layout, Mask(causal), position=position)),
        {"x": x},
        module,
        expected,
        tolerance,
    )


def test_the_bias_is_as_fine_as_the_model_and_never_coarser_than_float32() -> None:
    """Cast to bfloat16, slopes would be off by up to 2⁻⁹ of a distance of thousands; exponents are exact."""
    layout = Layout(torch.arange(3000)[None, -2:] - 1), Layout(torch.arange(3000)[None])
    exact = ALiBi(12).double().bias(*layout)
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64,) * 2,
    ):
        bias = ALiBi(12).to(dtype).bias(*layout)
        assert bias.dtype == wide
        torch.testing.assert_close(bias.double(), exact, rtol=2e-7, atol=0)
    assert not ALiBi(12).state_dict()


def test_the_bias_goes_by_positions_not_by_columns() -> None:
    """Rows padded on the left, or that keep some of their tokens, are biased as the tokens stand."""
    tokens = torch.zeros(2, 6, dtype=torch.long)
    real = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    layout = Layout.of(tokens, real)
    bias = ALiBi(2).bias(layout, layout)
    assert bias.shape == (2, 2, 6, 6)
    assert torch.equal(bias[1, :, 2:, 2:], bias[0, :, :4, :4])
    assert bias[0, 0, 5, 0] == -5 * 2.0**-4
    some = layout.select(torch.tensor([[0, 3, 5], [2, 4, 5]]))
    assert torch.equal(
        ALiBi(2).bias(some, some)[1, 0], -(2.0**-4) * torch.tensor([[0, 2, 3], [2, 0, 1], [3, 1, 0]])
    )
