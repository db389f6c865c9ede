"""Schedules at the steps where their papers give the value."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.training.schedule import Constant, Cosine, Noam, WarmupStableDecay


def test_noam_peaks_at_the_papers_rate() -> None:
    rate = Noam().build(d_model=512, max_steps=100_000)
    assert rate(4000) == pytest.approx(6.987712429686844e-4, rel=1e-12)
    assert rate(4000) == pytest.approx((512 * 4000) ** -0.5, rel=1e-12)
    assert max(range(1, 20_000), key=rate) == 4000
    assert rate(1) == pytest.approx(rate(4000) / 4000)
    assert rate(16_000) == pytest.approx(rate(4000) / 2)


@given(
    step=st.integers(1, 50_000), d=st.sampled_from([128, 512]), w=st.integers(1, 8000), k=st.floats(0.1, 5)
)
def test_noam_is_its_equation(step: int, d: int, w: int, k: float) -> None:
    rate = Noam(factor=k, warmup_steps=w).build(d_model=d, max_steps=1)
    assert rate(step) == pytest.approx(k / math.sqrt(d) * min(1 / math.sqrt(step), step / w**1.5), rel=1e-12)


def test_cosine_rises_then_falls_to_its_final_fraction() -> None:
    rate = Cosine(learning_rate=2.0, warmup_steps=10, final_fraction=0.1).build(d_model=1, max_steps=110)
    assert [rate(1), rate(5), rate(10)] == pytest.approx([0.2, 1.0, 2.0])
    assert rate(60) == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert rate(35) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert rate(110) == rate(500) == pytest.approx(0.2)


@pytest.mark.parametrize(("decay", "halfway"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_warmup_stable_decay(decay: str, halfway: float) -> None:
    config = WarmupStableDecay(3.0, warmup_steps=10, decay_fraction=0.2, decay=decay)  # type: ignore[arg-type]
    rate = config.build(d_model=1, max_steps=100)
    assert rate(5) == pytest.approx(1.5)
    assert {rate(step) for step in range(10, 81)} == {3.0}
    assert rate(81) < 3.0
    assert rate(90) == pytest.approx(3 * halfway)
    assert rate(100) == pytest.approx(0)


def test_constant_with_and_without_warmup() -> None:
    assert Constant(0.5).build(d_model=1, max_steps=1)(1) == 0.5
    rate = Constant(0.5, warmup_steps=4).build(d_model=1, max_steps=1)
    assert [rate(1), rate(4), rate(9)] == [0.125, 0.5, 0.5]


def test_no_decay_and_no_warmup_are_allowed() -> None:
    rate = WarmupStableDecay(1.0, warmup_steps=0, decay_fraction=0.0).build(d_model=1, max_steps=5)
    assert [rate(step) for step in range(1, 6)] == [1.0] * 5
    assert Cosine(1.0, warmup_steps=0, final_fraction=1.0).build(d_model=1, max_steps=5)(3) == 1.0


@pytest.mark.parametrize("config", [Cosine(warmup_steps=100), WarmupStableDecay(warmup_steps=90)])
def test_a_warmup_longer_than_the_run_is_refused(config: Cosine | WarmupStableDecay) -> None:
    with pytest.raises(
        ValueError, match=r"warmup_steps.* leaves no step of the run's \d+; lower it, or raise"
    ):
        config.build(d_model=1, max_steps=100)
