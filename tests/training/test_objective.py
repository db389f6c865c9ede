"""The losses equal their definitions, written once more in float64 NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.toys import VOCAB, ToyLanguageModel, ToyModel, ToyPairs, ToyText
from transformer.base import AuxiliaryLosses
from transformer.data import PairBatch, TextBatch
from transformer.training.objective import Causal, SequenceToSequence, Smoothing, smoothed_cross_entropy

FORMS: tuple[Smoothing, ...] = ("uniform", "exclude_gold_and_pad", "wrong_classes")
Array = npt.NDArray[np.float64]


def target_distribution(form: Smoothing, gold: int, v: int, epsilon: float, pad: int) -> Array:
    """q, the distribution that each form asks the model for, straight from its published definition."""
    if form == "uniform":
        q = np.full(v, epsilon / v)
        q[gold] += 1 - epsilon
    elif form == "wrong_classes":
        q = np.full(v, epsilon / (v - 1))
        q[gold] = 1 - epsilon
    else:
        q = np.full(v, epsilon / (v - 2))
        q[gold] = 1 - epsilon
        q[pad] = 0
    return q


def by_hand(
    z: Array,
    labels: npt.NDArray[np.int64],
    counted: npt.NDArray[np.bool_],
    form: Smoothing,
    epsilon: float,
    pad: int,
) -> tuple[float, float, Array]:
    """Return Σ -q·ln p, Σ -ln p_gold and the gradient p - q, over the counted positions."""
    total, nll, gradient = 0.0, 0.0, np.zeros_like(z)
    for index in np.argwhere(counted):
        row = z[tuple(index)]
        peak = row.max()
        log_p = row - peak - np.log(np.exp(row - peak).sum())
        gold = labels[tuple(index)]
        q = target_distribution(form, gold, len(row), epsilon, pad)
        total -= q @ log_p
        nll -= log_p[gold]
        gradient[tuple(index)] = np.exp(log_p) - q
    return total, nll, gradient


def case(seed: int, v: int, b: int = 3, t: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(b, t, v, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, v, (b, t), generator=generator)  # gold is never the padding, token 0
    return logits, labels, torch.rand(b, t, generator=generator) < 0.7


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), v=st.integers(4, 60), epsilon=st.sampled_from([0.0, 0.1, 0.37]))
def test_values_and_gradients_equal_the_definition(
    form: Smoothing, seed: int, v: int, epsilon: float
) -> None:
    logits, labels, counted = case(seed, v)
    logits.requires_grad_()
    total, nll = smoothed_cross_entropy(logits, labels, counted, epsilon, form, pad_id=0)
    total.backward()
    expected = by_hand(logits.detach().numpy(), labels.numpy(), counted.numpy(), form, epsilon, 0)
    assert total.item() == pytest.approx(expected[0], rel=1e-12, abs=1e-12)
    assert nll.item() == pytest.approx(expected[1], rel=1e-12, abs=1e-12)
    assert not nll.requires_grad
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected[2], atol=1e-13)


def test_the_three_forms_are_not_the_same_loss() -> None:
    losses = [smoothed_cross_entropy(*case(0, 10), 0.1, form)[0].item() for form in FORMS]
    assert len({round(loss, 6) for loss in losses}) == 3


@pytest.mark.parametrize("form", FORMS)
def test_nothing_counted_is_a_loss_of_zero_with_gradient_zero(form: Smoothing) -> None:
    logits, labels, counted = case(1, 9)
    logits.requires_grad_()
    total, nll = smoothed_cross_entropy(logits, labels, torch.zeros_like(counted), 0.1, form)
    total.backward()
    assert total.item() == 0 and nll.item() == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits, labels, counted = case(2, 50, b=8, t=40)
    logits = logits.to(dtype)
    total, nll = smoothed_cross_entropy(logits, labels, counted, 0.1)
    expected = by_hand(logits.double().numpy(), labels.numpy(), counted.numpy(), "uniform", 0.1, 0)
    assert total.dtype == nll.dtype == torch.float32
    assert (total.item(), nll.item()) == pytest.approx(expected[:2], rel=1e-6)


def test_sequence_to_sequence_shifts_the_target_and_skips_padding() -> None:
    model, batch = ToyModel(dropout=0.0, dtype=torch.float64), ToyPairs().batch(3)
    loss = SequenceToSequence(label_smoothing=0.0)(model, batch)
    with torch.no_grad():
        log_p = model(batch.source, batch.target[:, :-1], batch.source_mask).log_softmax(-1)
    expected = 0.0
    for row, (target, mask) in enumerate(zip(batch.target, batch.target_mask, strict=True)):
        for position in range(1, int(mask.sum())):
            expected -= log_p[row, position - 1, target[position]].item()
    assert loss.nll.item() == pytest.approx(expected, rel=1e-12)
    assert loss.count == int(batch.target_mask.sum()) - len(batch.target) == SequenceToSequence().count(batch)


def test_padded_positions_change_nothing() -> None:
    model, batch = ToyModel(dropout=0.0, dtype=torch.float64), ToyPairs().batch(3)
    noise = torch.randint_like(batch.target, 3, VOCAB)
    other = PairBatch(
        batch.source, batch.source_mask, batch.target.where(batch.target_mask, noise), batch.target_mask
    )
    first, second = (SequenceToSequence()(model, each) for each in (batch, other))
    assert first.total.item() == pytest.approx(second.total.item(), rel=1e-14)


def test_causal_predicts_every_token_but_the_first() -> None:
    model, batch = ToyLanguageModel(dropout=0.0, dtype=torch.float64), ToyText().batch(0)
    loss = Causal()(model, batch)
    log_p = model(batch.tokens[:, :-1]).log_softmax(-1)
    expected = -log_p.gather(-1, batch.tokens[:, 1:, None]).sum()
    assert loss.count == Causal().count(batch) == batch.tokens[:, 1:].numel()
    assert loss.total.item() == loss.nll.item() == pytest.approx(expected.item(), rel=1e-12)


class WithAuxiliary(ToyLanguageModel):
    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Tensor:
        logits = super().forward(tokens)
        if auxiliary is not None:
            auxiliary.add(self, "test", 0.5 * logits.square().mean())
        return logits


def test_auxiliary_losses_are_weighted_by_the_count() -> None:
    torch.manual_seed(0)
    model, batch = WithAuxiliary(dropout=0.0, dtype=torch.float64), ToyText().batch(0)
    loss = Causal()(model, batch)
    auxiliary = 0.5 * model(batch.tokens[:, :-1]).square().mean()
    assert (loss.total - loss.nll).item() == pytest.approx(loss.count * auxiliary.item(), rel=1e-10)


def test_an_empty_batch_costs_nothing() -> None:
    tokens = torch.zeros(0, 5, dtype=torch.long)
    loss = Causal()(ToyLanguageModel(), TextBatch(tokens))
    assert loss.total.item() == 0 and loss.count == 0
