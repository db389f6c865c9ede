"""Span corruption against a definition of its own, and what holds of it whatever is drawn."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.data import ByteTokenizer, DataError, TextEvaluation, TextStream
from transformer.data.pairs import PairBatch
from transformer.data.span_corruption import (
    SENTINELS,
    SpanCorruption,
    SpanEvaluation,
    SpanStream,
    restore,
    sentinels_of,
)

TOKENIZER = ByteTokenizer().with_special(SENTINELS)
MADE = SpanCorruption(sentinels_of(TOKENIZER), TOKENIZER.pad, TOKENIZER.eos)
TOP = TOKENIZER.vocab_size - 1


def text(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """With eos in it, as between two documents."""
    return torch.randint(2, 259, (rows, length), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 200),
    rows=st.integers(1, 4),
    share=st.sampled_from([0.01, 0.15, 0.5, 0.9]),
    mean_span=st.sampled_from([1.0, 2.5, 3.0, 10.0]),
    seed=st.integers(0, 2**40),
)
def test_what_holds_whatever_is_drawn(
    length: int, rows: int, share: float, mean_span: float, seed: int
) -> None:
    made = SpanCorruption(tuple(range(TOP + 200, TOP, -1)), 0, 2, share, mean_span)
    tokens = text(rows, length, seed % 1000)
    n_hidden, n_spans = made.sizes(length)
    batch = made.corrupt(tokens, seed, 3)
    assert (batch.source.shape[1], batch.target.shape[1]) == made.widths(length)
    assert batch.source_mask.all() and batch.target_mask.all()
    assert abs(n_hidden - share * length) <= 0.5 or n_hidden in (1, length - 1)
    assert abs(n_spans - n_hidden / mean_span) <= 0.5 or n_spans in (1, n_hidden, length - n_hidden + 1)
    for row, source, target in zip(
        tokens.tolist(), batch.source.tolist(), batch.target.tolist(), strict=True
    ):
        used = [token for token in source if token in made.sentinels]
        assert used == list(made.sentinels[:n_spans])
        assert [token for token in target if token in made.sentinels] == list(made.sentinels[: n_spans + 1])
        assert target[0] == 0 and target[-2:] == [made.sentinels[n_spans], 2] and source[-1] == 2
        assert not any(a in used and b in used for a, b in pairwise(source)), "spans touch"
        assert not any(a in used and b in used for a, b in pairwise(target)), "empty span"
        assert len(target) - 3 - n_spans == n_hidden
        assert restore(source, target, made.sentinels, 2) == row


def cut(row: Any, hidden: Any) -> tuple[list[int], list[int]]:
    """Source and target of a row and a mask of what is cut out, by walking along them: the definition."""
    source, target, number = [], [0], -1
    for place, token in enumerate(row):
        if not hidden[place]:
            source.append(int(token))
            continue
        if place == 0 or not hidden[place - 1]:
            number += 1
            source.append(TOP - number)
            target.append(TOP - number)
        target.append(int(token))
    return [*source, 2], [*target, TOP - number - 1, 2]


def test_it_is_its_definition() -> None:
    """All tokens of a window are unlike, so the source tells which were cut out."""
    rows = np.stack([np.random.default_rng(seed).permutation(np.arange(3, 203)) for seed in range(20)])
    batch = MADE.corrupt(torch.from_numpy(rows), 5, 7)
    for row, source, target in zip(rows, batch.source.tolist(), batch.target.tolist(), strict=True):
        hidden = ~np.isin(row, source)
        assert hidden.sum() == 30 and (source, target) == cut(row, hidden)


def test_the_papers_example() -> None:
    """Figure 2: two spans, of two words and of one."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    row = list(range(3, 3 + len(words)))
    hidden = [word in ("for", "inviting", "last") for word in words]
    names = {**dict(zip(row, words, strict=True)), TOP: "X", TOP - 1: "Y", TOP - 2: "Z", 2: "$", 0: "^"}
    source, target = ([names[token] for token in part] for part in cut(row, hidden))
    assert " ".join(source) == "Thank you X me to your party Y week $"
    assert " ".join(target) == "^ X for inviting Y last Z $"
    made = SpanCorruption(MADE.sentinels, 0, 2, 0.3, 1.5)
    found = {tuple(made.corrupt(torch.tensor([row]), 0, step).source[0].tolist()) for step in range(2000)}
    assert tuple(cut(row, hidden)[0]) in found
    # 2 ways to cut 3 tokens into 2 spans, and 28 to put 7 kept ones around them: C(8, 2), the inner gap not empty
    assert len(found) == 56


def test_every_way_to_cut_is_equally_likely() -> None:
    made = SpanCorruption(MADE.sentinels, 0, 2, 0.5, 2.0)  # of 6 tokens 3, in round(1.5) = 2 spans
    batch = made.corrupt(torch.arange(3, 9).expand(24_000, -1), 1, 0)
    counts = Counter(map(tuple, batch.source.tolist()))
    assert len(counts) == 2 * 6  # C(2, 1) · C(4, 2)
    assert max(abs(count - 2000) for count in counts.values()) < 5 * 2000**0.5


def test_shares_are_the_papers() -> None:
    assert MADE.sizes(512) == (77, 26)
    assert MADE.widths(512) == (512 - 77 + 26 + 1, 1 + 77 + 26 + 2)


def stream(seed: int = 0, batch_size: int = 6) -> SpanStream:
    tokens = text(1, 3000)[0].numpy()
    return SpanStream(TextStream(tokens, context=50, batch_size=batch_size, seed=seed), MADE, seed=seed)


def same(one: PairBatch, other: PairBatch) -> bool:
    return torch.equal(one.source, other.source) and torch.equal(one.target, other.target)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, second = stream(), stream()
    second.batch(9)
    assert same(first.batch(4), second.batch(4))
    assert not same(first.batch(4), first.batch(5)) and not same(first.batch(4), stream(1).batch(4))
    whole = first.batch(2)
    parts = [first.batch(2, part, 3) for part in range(3)]
    assert torch.equal(torch.cat([part.target for part in parts]), whole.target)
    for part in (-1, 3):
        with pytest.raises(ValueError, match=r"^expected 0 <= part < parts, got part"):
            first.batch(2, part, 3)


def test_the_same_window_is_cut_anew_at_each_step() -> None:
    tokens = text(1, 60)
    assert len({tuple(MADE.corrupt(tokens, 0, step).source[0].tolist()) for step in range(50)}) == 50


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_split_is_evaluated_whole_and_however_it_is_cut(batch_size: int) -> None:
    tokens = text(1, 333)[0].numpy()

    def rows(size: int) -> list[tuple[list[int], list[int]]]:
        windows = TextEvaluation(tokens, context=50, batch_size=size, n_bytes=332)
        batches = SpanEvaluation(windows, MADE).batches()
        return [
            pair
            for batch in batches
            for pair in zip(batch.source.tolist(), batch.target.tolist(), strict=True)
        ]

    found = rows(batch_size)
    assert found == rows(3)
    text_again = [token for pair in found for token in restore(*pair, MADE.sentinels, MADE.eos)]
    assert text_again == tokens[1:].tolist()


def test_sentinels_are_the_highest_ids_counted_downwards() -> None:
    assert MADE.sentinels == tuple(range(TOP, TOP - 100, -1)) and TOKENIZER.vocab_size == 259 + 100
    assert TOKENIZER.decode(MADE.sentinels) == ""
    with pytest.raises(DataError, match=r"^the tokenizer has no special token '⟨sentinel 0⟩'"):
        sentinels_of(ByteTokenizer())


def test_too_few_sentinels_are_refused() -> None:
    made = SpanCorruption((9, 8, 7), 0, 2)
    assert made.corrupt(text(1, 40), 0, 0).source.shape[1] == made.widths(40)[0]  # 6 tokens in 2 spans
    with pytest.raises(DataError, match=r"^a window of 60 tokens has 3 spans, which need 4 sentinels, "):
        made.corrupt(text(1, 60), 0, 0)


def test_restoring_what_a_model_wrote_never_fails() -> None:
    source = [5, 9, 6, 8, 7, 2, 0, 0]
    for target, expected in (
        ([0, 9, 11, 12, 8, 13, 77, 2, 0], [5, 11, 12, 6, 13, 7]),
        ([0, 9, 8, 8, 2], [5, 6, 7]),
        ([0, 2], [5, 6, 7]),
        ([], [5, 6, 7]),
        ([11, 9, 12], [5, 12, 6, 7]),
        ([0, 77, 3, 9, 4, 2, 9, 5], [5, 4, 6, 7]),
    ):
        assert restore(source, target, (9, 8, 77), 2) == expected
