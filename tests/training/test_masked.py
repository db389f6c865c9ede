"""Masked-token training: what is hidden, when, how often, and what it costs."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transformer.data import MaskedBatch, MaskedStream, Masking, TextStream
from transformer.models import BERT, GPT, Transformer
from transformer.training.objective import Masked

VOCAB, MASK, SPECIAL = 40, 4, (0, 1, 2, 3)
MASKING = Masking(VOCAB, MASK, SPECIAL)


def text(rows: int = 6, length: int = 100) -> tuple[Tensor, Tensor]:
    """Rows that begin and end with special tokens, the last of them padded."""
    tokens = torch.randint(5, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0], tokens[:, -1] = 1, 2
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[-1, 57:] = False
    return tokens, real


def stream(batch_size: int = 6, context: int = 64) -> MaskedStream:
    tokens = np.random.default_rng(0).integers(5, VOCAB, 5000).astype(np.uint16)
    tokens[::9] = 2
    windows = TextStream(tokens, context=context, batch_size=batch_size, seed=7)
    return MaskedStream(windows, MASKING, seed=7)


def equal(first: MaskedBatch, second: MaskedBatch) -> bool:
    return all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))


def test_exactly_the_share_of_each_row_is_chosen() -> None:
    tokens, real = text()
    for step in range(50):
        batch = MASKING.hide(tokens, real, 3, step)
        assert batch.chosen.sum(1).tolist() == [round(0.15 * 98)] * 5 + [round(0.15 * 56)]
        assert torch.equal(batch.labels, tokens) and torch.equal(batch.real, real)
        assert torch.equal(batch.tokens[~batch.chosen], tokens[~batch.chosen])
        assert (
            not batch.chosen[~real].any()
            and not torch.isin(tokens[batch.chosen], torch.tensor(SPECIAL)).any()
        )


def test_short_rows_give_one_token_and_empty_ones_none() -> None:
    tokens = torch.tensor([[1, 9, 2, 0], [1, 2, 0, 0], [1, 4, 2, 2]])
    batch = MASKING.hide(tokens, tokens > 0, 0, 0)
    assert batch.chosen.tolist() == [[False, True, False, False], [False] * 4, [False] * 4]


def test_of_the_chosen_four_fifths_are_masked_a_tenth_drawn_and_a_tenth_kept() -> None:
    tokens, real = text(rows=64, length=400)
    fates, where, drawn = torch.zeros(3), torch.zeros(400), []
    for step in range(100):
        batch = MASKING.hide(tokens, real, 1, step)
        got, had = batch.tokens[batch.chosen], batch.labels[batch.chosen]
        fates += torch.tensor([(got == MASK).sum(), ((got != MASK) & (got != had)).sum(), (got == had).sum()])
        where += batch.chosen[:-1].sum(0)
        drawn.append(got[(got != MASK) & (got != had)])
    total = int(fates.sum())
    by_chance = 0.1 / 35  # a random token may be the one that was there
    for count, rate in zip(fates.tolist(), (0.8, 0.1 - by_chance, 0.1 + by_chance), strict=True):
        assert abs(count / total - rate) < 5 * math.sqrt(rate * (1 - rate) / total)
    assert total > 300_000
    others = torch.cat(drawn)
    assert set(others.tolist()) == set(range(5, VOCAB))  # no special token, no mask token, every other one
    counts = torch.bincount(others, minlength=VOCAB)[5:].double()
    assert ((counts / counts.mean() - 1).abs() < 6 / counts.mean().sqrt()).all()
    middle = where[1:-1] / (63 * 100)
    assert (
        (middle - 60 / 398).abs() < 6 * math.sqrt(0.15 * 0.85 / 6300)
    ).all()  # round(0.15 · 398) = 60: each place alike


def test_what_is_hidden_is_a_function_of_seed_and_step() -> None:
    tokens, real = text()
    torch.manual_seed(1)
    first = MASKING.hide(tokens, real, 5, 9)
    torch.manual_seed(2)
    assert equal(first, MASKING.hide(tokens, real, 5, 9))
    for other in (MASKING.hide(tokens, real, 5, 10), MASKING.hide(tokens, real, 6, 9)):
        assert not torch.equal(first.chosen, other.chosen)


def test_micro_batches_hide_what_the_whole_batch_hides() -> None:
    source = stream(batch_size=7)
    whole = source.batch(11)
    for parts in (1, 2, 3, 7):
        pieces = [source.batch(11, part, parts) for part in range(parts)]
        joined = MaskedBatch(*(torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(whole)))
        assert equal(joined, whole)
    assert whole.tokens.shape == (7, 64) and whole.real.all()
    with pytest.raises(ValueError, match=r"^expected 0 <= part < parts, got part 2/2$"):
        source.batch(0, 2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": 40}, r"^the token 40 is not in the vocabulary, 0 to 39$"),
        ({"special": (-1,)}, r"^the token -1 is not in the vocabulary, 0 to 39$"),
        (
            {"masked": 0.9, "random": 0.2},
            r"^masked 0.9 and random 0.2 are shares of the same tokens; their sum",
        ),
        ({"special": tuple(range(40))}, r"^all 40 tokens are special; there is none to predict$"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Masking(**{"vocab_size": VOCAB, "mask": MASK, **options})


# ---------------------------------------------------------------- the objective


def small(**switches: Any) -> BERT:
    torch.manual_seed(0)
    return BERT(VOCAB, 24, 3, 2, dropout=0.0, max_seq_len=100, **switches)


def test_the_loss_is_that_of_the_hidden_tokens_alone() -> None:
    model, (tokens, real) = small().double(), text()
    batch = MASKING.hide(tokens, real, 0, 0)
    loss = Masked()(model, batch)
    log_p = model(batch.tokens, attention_mask=real).log_softmax(-1)
    expected = torch.zeros((), dtype=torch.float64)
    for row, column in batch.chosen.nonzero().tolist():
        expected = expected - log_p[row, column, tokens[row, column]]
    assert loss.count == int(batch.chosen.sum()) == Masked().count(batch)
    assert loss.nll.item() == pytest.approx(expected.item(), rel=1e-12)
    got = torch.autograd.grad(loss.total, model.embedding.weight)[0]
    torch.testing.assert_close(
        got, torch.autograd.grad(expected, model.embedding.weight)[0], rtol=0, atol=1e-11
    )


def test_logits_are_made_for_hidden_tokens_only() -> None:
    model, (tokens, real) = small(), text()
    batch, rows = MASKING.hide(tokens, real, 0, 0), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    Masked()(model, batch)
    assert rows == [int(batch.chosen.sum())]


def test_nothing_hidden_is_a_loss_of_zero() -> None:
    model, tokens = small(), torch.ones(2, 8, dtype=torch.long)
    loss = Masked()(model, MASKING.hide(tokens, tokens > 0, 0, 0))
    loss.total.backward()
    assert (loss.count, loss.total.item()) == (0, 0.0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("model", [GPT, Transformer])
def test_a_model_that_is_no_encoder_is_refused(model: type) -> None:
    tokens, real = text()
    with pytest.raises(
        ValueError, match=r"^the objective 'masked' trains an encoder, such as BERT, and \w+ is none;"
    ):
        Masked()(model(VOCAB, 24, 3, 1), MASKING.hide(tokens, real, 0, 0))
