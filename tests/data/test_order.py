"""Permutations computed element by element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.data.order import Permutation


@given(length=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
def test_each_element_comes_once(length: int, seed: int) -> None:
    whole = Permutation(length, seed).all()
    assert sorted(whole.tolist()) == list(range(length))


@given(length=st.integers(1, 2**60), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_any_length_in_any_order(length: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(
        data.draw(st.lists(st.integers(0, length - 1), unique=True, max_size=20)), dtype=np.int64
    )
    values = Permutation(length, seed)(positions)
    assert np.array_equal(values, [Permutation(length, seed)(np.array([p]))[0] for p in positions])
    assert len(set(values.tolist())) == len(positions) and np.all((values >= 0) & (values < length))


def test_each_element_is_equally_likely_at_each_position() -> None:
    counts = np.zeros((30, 30))
    for seed in range(600):
        counts[np.arange(30), Permutation(30, seed).all()] += 1
    chi_square = ((counts - 20) ** 2 / 20).sum()
    freedom = 29 * 29
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours() -> None:
    whole = Permutation(100_000, 1).all()
    assert abs(np.corrcoef(whole[:-1], whole[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(whole, np.arange(100_000))[0, 1]) < 0.02
    assert np.mean(whole == Permutation(100_000, 2).all()) < 1e-3


def test_the_order_never_changes_between_versions() -> None:
    assert Permutation(10, 0).all().tolist() == [9, 1, 5, 7, 3, 0, 4, 6, 8, 2]


def test_an_empty_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one element, got length 0"):
        Permutation(0, 0)
