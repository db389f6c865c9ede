"""Averages of weights equal their sums written out, and evaluation gives the weights back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.toys import ToyModel
from transformer.training.average import WeightAverage, average_checkpoints


def test_the_moving_average_is_its_recurrence() -> None:
    model = nn.Linear(3, 2).double()
    average = WeightAverage(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 101):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3, dtype=torch.float64))
        average.update(model, step)
        delta = min(0.9, (1 + step) / (10 + step))
        expected = delta * expected + (1 - delta) * model.weight.detach()
    assert (average.tensors["weight"] - expected).abs().max() <= 1e-13


def test_without_warmup_the_decay_is_constant() -> None:
    average = WeightAverage(nn.Linear(1, 1), 0.999, warmup=False)
    assert average.decay_at(1) == average.decay_at(10**6) == 0.999
    assert WeightAverage(nn.Linear(1, 1), 0.999).decay_at(1) == pytest.approx(2 / 11)


def test_applied_weights_go_back_even_after_an_error() -> None:
    model = ToyModel()
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyError):
        look_and_fail(model, average)
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


def look_and_fail(model: ToyModel, average: WeightAverage) -> None:
    with average.applied_to(model):
        assert all(torch.equal(p, average.tensors[name]) for name, p in model.named_parameters())
        assert model.head.weight is model.embedding.weight
        raise KeyError


def test_averages_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="weight average does not fit this model: 'bias'"):
        WeightAverage(nn.Linear(2, 2), 0.9).load({"weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got .*; 0.999 suits"):
        WeightAverage(nn.Linear(2, 2), decay)


def test_the_mean_of_checkpoints() -> None:
    states = [{"w": torch.full((2,), float(n)), "count": torch.tensor(n)} for n in (1, 2, 6)]
    mean = average_checkpoints(iter(states))
    assert mean["w"].tolist() == [3.0, 3.0] and mean["w"].dtype == torch.float32
    assert mean["count"].item() == 6


def test_the_mean_is_taken_in_float64() -> None:
    thirds = [{"w": torch.tensor([value])} for value in (16777216.0, 1.0, 1.0)]
    assert average_checkpoints(thirds)["w"].item() == pytest.approx(16777218 / 3, rel=1e-8)


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot average 0 checkpoints; train until the first one is saved"):
        average_checkpoints([])
    with pytest.raises(ValueError, match="different models: 'b' is not in all"):
        average_checkpoints([{"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}])
