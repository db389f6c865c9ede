"""The algebra of rotary positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import references
from transformer.base.sockets import Layout
from transformer.enhancements.position.rope import RotaryPosition, rotary_angles
from transformer.models import GPT


def turned(x: torch.Tensor, positions: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    return RotaryPosition(base).rotate(x, x, Layout(positions))[0]


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_a_rotation_is_a_product_of_complex_numbers(base: float) -> None:
    x, positions = torch.randn(2, 12, 65, 16, dtype=torch.float64), torch.randint(2000, (2, 65))
    got = turned(x, positions, base).numpy()
    for row in range(2):
        expected = references.turn(x[row].numpy(), positions[row].numpy().astype(float)[None], base)
        assert np.abs(got[row] - expected).max() <= 1e-11


def test_scores_depend_on_distances_alone_and_lengths_are_kept() -> None:
    x, positions = torch.randn(1, 3, 64, 8, dtype=torch.float64), torch.arange(64)[None]
    near, far = turned(x, positions), turned(x, positions + 5000)
    torch.testing.assert_close(near.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(near @ near.mT, far @ far.mT, rtol=0, atol=1e-10)
    assert not torch.allclose(near @ near.mT, x @ x.mT)
    assert torch.equal(turned(x, positions * 0), x)


def test_far_positions_are_as_exact_as_near_ones() -> None:
    x, positions = torch.randn(1, 1, 50, 64), torch.arange(10**6, 10**6 + 50)[None]
    error = turned(x, positions) - turned(x.double(), positions)
    assert error.abs().max() <= 1e-6
    coarse = turned(x.bfloat16(), positions)
    exact = turned(x.bfloat16().double(), positions)
    assert (coarse - exact).abs().max() <= 2.0**-8 * exact.abs().max()  # one rounding, of the result


def test_a_cast_of_the_model_does_not_reach_the_angles() -> None:
    assert rotary_angles(torch.arange(3)[None], 8, 10000.0).dtype == torch.float64
    assert not list(RotaryPosition().bfloat16().buffers())


def test_heads_of_odd_width_are_refused() -> None:
    model = GPT(vocab_size=9, d_model=15, n_heads=3, n_layers=1, use_rope=True)
    with pytest.raises(
        ValueError, match=r"^rotary position needs heads of even width, got 5; change n_heads or d_model$"
    ):
        model(torch.zeros(1, 2).long())
