"""Beam search against all targets there are, against a slow reference, and by itself in every batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.generation.toys import (
    BOS,
    EOS,
    PAD,
    FunctionDecoder,
    FunctionModel,
    Prefix,
    log_softmax,
    random_tree,
    score,
    slow_beam_search,
)
from transformer.base import Transformer
from transformer.generation import beam_generate, beam_search

pytestmark = pytest.mark.shapes_unchecked

SPECIAL = {"bos": BOS, "eos": EOS, "pad": PAD}


def target(row: torch.Tensor) -> Prefix:
    """A row of the result up to its `eos`, after which there must be padding only."""
    tokens = row.tolist()
    end = tokens.index(EOS) + 1
    assert set(tokens[end:]) <= {PAD}
    return tuple(tokens[:end])


def small_transformer(seed: int, max_seq_len: int = 64, vocab_size: int = 23) -> Transformer:
    """In float64, and with an output matrix of its own, so that targets of all lengths come out."""
    torch.manual_seed(seed)
    model = (
        Transformer(vocab_size, d_model=16, n_heads=2, n_layers=2, max_seq_len=max_seq_len).double().eval()
    )
    model.lm_head.weight = torch.nn.Parameter(0.6 * torch.randn_like(model.lm_head.weight))
    model.lm_head.weight.data[EOS] *= 2
    return model


def ragged(lengths: list[int], vocab_size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return source.masked_fill(~mask, PAD), mask


@pytest.mark.parametrize(("vocab_size", "limit"), [(3, 5), (4, 4), (5, 3), (6, 1)])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.5])
def test_wide_enough_a_beam_finds_the_best_of_all_targets(vocab_size: int, limit: int, alpha: float) -> None:
    for seed in range(6):
        logits = random_tree(vocab_size, seed)
        source = torch.full((1, 1), 3)
        found = beam_search(
            FunctionModel(logits),
            source,
            **SPECIAL,
            beam_size=vocab_size**limit,
            length_penalty=alpha,
            max_extra_tokens=limit - 1,
        )
        others = [token for token in range(vocab_size) if token != EOS]
        every = [
            (*words, EOS) for n in range(limit) for words in itertools.product(others, repeat=n)
        ]  # all targets of at most `limit` tokens

        def value(y: Prefix) -> float:
            steps = range(len(y))
            gains = [log_softmax(logits((3,), (BOS, *y[:i])))[y[i]] for i in steps]  # noqa: B023
            return score(sum(gains), len(y), alpha)

        assert target(found[0]) == max(every, key=value)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(3, 12),
    beam_size=st.integers(1, 7),
    alpha=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    extra=st.integers(0, 9),
    spread=st.sampled_from([0.3, 1.5, 4.0]),
)
def test_it_equals_the_slow_reference_on_random_trees(
    seed: int, vocab_size: int, beam_size: int, alpha: float, lengths: list[int], extra: int, spread: float
) -> None:
    logits = random_tree(vocab_size, seed, spread)
    source, mask = ragged(lengths, 40, seed)
    found = beam_search(
        FunctionModel(logits),
        source,
        mask,
        **SPECIAL,
        beam_size=beam_size,
        length_penalty=alpha,
        max_extra_tokens=extra,
    )
    for row, length in enumerate(lengths):
        words = tuple(source[row, :length].tolist())

        def whole(prefixes: list[Prefix], words: Prefix = words) -> list[list[float]]:
            return [logits(words, prefix) for prefix in prefixes]

        assert target(found[row]) == slow_beam_search(whole, beam_size, alpha, length + extra)


@pytest.mark.parametrize(("beam_size", "alpha"), [(1, 0.6), (2, 0.0), (4, 0.6), (4, 1.5), (7, 1.0)])
def test_it_equals_the_slow_reference_on_a_transformer(beam_size: int, alpha: float) -> None:
    lengths, extra, seen = [9, 1, 4, 12, 6, 2], 7, set()
    options = {**SPECIAL, "beam_size": beam_size, "length_penalty": alpha, "max_extra_tokens": extra}
    for seed in (0, 1, 3):
        model = small_transformer(seed)
        source, mask = ragged(lengths, 23, seed)
        found = beam_search(model, source, mask, **options)
        for row, length in enumerate(lengths):
            words = source[row : row + 1, :length]

            def whole(
                prefixes: list[Prefix], words: torch.Tensor = words, model: Transformer = model
            ) -> list[list[float]]:
                with torch.no_grad():  # whole sequences: no state and no padding
                    return model(words.expand(len(prefixes), -1), torch.tensor(prefixes))[:, -1].tolist()

            expected = slow_beam_search(whole, beam_size, alpha, length + extra)
            assert target(found[row]) == expected
            seen.add(len(expected))
    assert len(seen) > 4  # targets of many lengths were compared


def test_beam_1_is_greedy() -> None:
    for seed in range(5):
        model = small_transformer(seed)
        source, mask = ragged([7, 3, 5], 23, seed)
        found = beam_search(model, source, mask, **SPECIAL, beam_size=1, max_extra_tokens=6)
        for row, length in enumerate([7, 3, 5]):
            words = source[row : row + 1, :length]
            greedy = [BOS]
            while greedy[-1] != EOS and len(greedy) < length + 6:
                with torch.no_grad():
                    greedy.append(int(model(words, torch.tensor([greedy]))[0, -1].argmax()))
            expected = greedy[1:] if greedy[-1] == EOS else [*greedy[1:], EOS]
            assert target(found[row]) == tuple(expected)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_source_does_not_depend_on_its_batch(beam_size: int) -> None:
    lengths = [9, 1, 4, 12, 6, 2, 12, 3]
    model = small_transformer(3)
    source, mask = ragged(lengths, 23, 7)
    options = {**SPECIAL, "beam_size": beam_size, "max_extra_tokens": 9}
    together = [target(row) for row in beam_search(model, source, mask, **options)]
    alone = [target(beam_search(model, source[i : i + 1, :n], **options)[0]) for i, n in enumerate(lengths)]
    order = torch.tensor([5, 0, 7, 2, 3, 1, 6, 4])
    permuted = [target(row) for row in beam_search(model, source[order], mask[order], **options)]
    wider = torch.nn.functional.pad(source, (0, 5), value=11), torch.nn.functional.pad(mask, (0, 5))
    assert together == alone
    assert permuted == [together[i] for i in order.tolist()]
    assert [target(row) for row in beam_search(model, *wider, **options)] == together
    assert len(set(map(len, together))) > 2


def never_ends(source: Prefix, prefix: Prefix) -> list[float]:
    return [0.0, 0.0, -50.0, 2.0, 1.0]


def test_no_target_is_longer_than_its_source_and_the_extra_tokens() -> None:
    source, mask = ragged([2, 5, 3], 9, 0)
    found = beam_search(FunctionModel(never_ends), source, mask, **SPECIAL, max_extra_tokens=4)
    assert [len(target(row)) for row in found] == [6, 9, 7]
    assert [len(target(row)) for row in beam_search(FunctionModel(never_ends), source, **SPECIAL)] == [55] * 3


def test_no_target_is_longer_than_the_model_can_number() -> None:
    model = small_transformer(0, max_seq_len=8)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))  # every token alike
    found = beam_search(model, torch.tensor([[5, 6, 7]]), **SPECIAL, length_penalty=50.0)
    assert found.shape[1] <= 8
    found = beam_search(FunctionModel(never_ends, max_seq_len=8), torch.tensor([[5, 6, 7]]), **SPECIAL)
    assert len(target(found[0])) == 8


def test_the_search_ends_once_no_longer_target_can_win() -> None:
    def ends_at_once(source: Prefix, prefix: Prefix) -> list[float]:
        return [0.0, 0.0, 20.0, 0.0, 0.0]

    model = FunctionModel(ends_at_once)
    found = beam_search(model, torch.tensor([[5, 6, 7]] * 2), **SPECIAL)
    assert found.tolist() == [[EOS]] * 2
    assert [rows for rows, _, _ in model.calls] == [2]  # one step, and one row for each source in it


def test_finished_sources_leave_the_batch() -> None:
    def copies(source: Prefix, prefix: Prefix) -> list[float]:
        wanted = (*source, EOS)[len(prefix) - 1]
        return [30.0 if token == wanted else 0.0 for token in range(40)]

    source, mask = ragged([2, 5, 3], 40, 1)
    model = FunctionModel(copies)
    found = beam_search(model, source, mask, **SPECIAL, beam_size=2)
    for row, length in enumerate([2, 5, 3]):
        assert target(found[row]) == (*source[row, :length].tolist(), EOS)
    assert [rows for rows, _, _ in model.calls] == [3, 6, 6, 4, 2, 2]


def test_ties_go_the_same_way_every_time_and_in_every_batch() -> None:
    def alike(source: Prefix, prefix: Prefix) -> list[float]:
        return [0.0] * 50

    source = torch.full((6, 3), 4)
    found = [beam_search(FunctionModel(alike), source[:n], **SPECIAL, length_penalty=9.0) for n in (6, 6, 1)]
    assert torch.equal(found[0], found[1])
    assert {target(row) for result in found for row in result} == {target(found[0][0])}


def test_the_shorter_of_two_equally_good_targets_wins() -> None:
    def certain_once_begun(source: Prefix, prefix: Prefix) -> list[float]:
        if prefix == (BOS,):
            return [-1e9, -1e9, 0.0, 0.0]
        return [-1e9, -1e9, 0.0, -1e9]

    found = beam_search(
        FunctionModel(certain_once_begun), torch.tensor([[5]]), **SPECIAL, beam_size=2, length_penalty=0.0
    )
    assert target(found[0]) == (EOS,)


def test_dropout_is_off_during_the_search_only() -> None:
    model = FunctionModel(never_ends).train()
    model.frozen = torch.nn.Dropout().eval()
    found = beam_search(model, torch.tensor([[5]]), **SPECIAL, max_extra_tokens=1)
    assert not any(training for _, _, training in model.calls)
    assert model.training and not model.frozen.training
    assert not found.is_inference()

    def fails(source: Prefix, prefix: Prefix) -> list[float]:
        raise KeyError("broken")

    model = FunctionModel(fails).train()
    with pytest.raises(KeyError, match="broken"):
        beam_search(model, torch.tensor([[5]]), **SPECIAL)
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, r"^beam_size must be at least 1 \(greedy decoding\), got 0$"),
        (
            {"length_penalty": -0.1},
            r"^length_penalty must be 0 \(none\) or more, got -0.1; the paper has 0.6$",
        ),
        ({"length_penalty": float("nan")}, r"^length_penalty must be 0 .* got nan"),
        ({"max_extra_tokens": -1}, r"^max_extra_tokens must be 0 or more, got -1; the paper has 50$"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(FunctionModel(never_ends), torch.tensor([[5]]), **SPECIAL, **options)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(broken: float) -> None:
    def breaks(source: Prefix, prefix: Prefix) -> list[float]:
        return [0.0, 0.0, 0.0, broken if len(prefix) == 3 else 1.0, 0.0]

    with pytest.raises(
        ValueError, match="^the model's logits are not finite: no target is best; check its weig"
    ):
        beam_search(FunctionModel(breaks), torch.tensor([[5]]), **SPECIAL, length_penalty=5.0)


# ---------------------------------------------------------------- forms of the score, and decoder-only models


def best_of_all(tree: Callable[[Prefix, Prefix], list[float]], limit: int, alpha: float, form: str) -> Prefix:
    """The best of all continuations of the prompt (3,); the longest may be cut off."""

    def value(y: Prefix) -> float:
        gains = [log_softmax(tree((), (3, *y[:i])))[token] for i, token in enumerate(y)]
        return score(sum(gains), len(y), alpha) if form == "gnmt" else sum(gains) / len(y) ** alpha

    others = [0, 1, 3]
    bodies = [body for n in range(limit + 1) for body in itertools.product(others, repeat=n)]
    return max(
        [*(b for b in bodies if len(b) == limit), *((*b, EOS) for b in bodies if len(b) < limit)], key=value
    )


@pytest.mark.parametrize("form", ["gnmt", "power"])
@pytest.mark.parametrize("stopping", ["full", "worse", "never"])
def test_continuations_are_the_best_of_all(form: Any, stopping: Any) -> None:
    limit = 4
    for seed, alpha in ((0, 0.0), (1, 0.6), (2, 1.0), (3, 2.0)):
        tree = random_tree(4, seed)
        model = FunctionDecoder(lambda seen, tree=tree: tree((), seen))
        wide = {"beam_size": 4**limit, "length_penalty": alpha, "normalization": form, "stopping": stopping}
        found = beam_generate(model, torch.tensor([[3]]), limit, stop=EOS, pad=9, **wide)[0, 1:].tolist()
        assert tuple(token for token in found if token != 9) == best_of_all(tree, limit, alpha, form)


def test_one_search_for_both_kinds_of_model() -> None:
    """A prompt of a decoder-only model is what the start token is to an encoder-decoder."""
    lengths = [4, 1, 6]
    prompts, mask = ragged(lengths, 20, 3)
    tree = random_tree(8, 7)
    model = FunctionDecoder(lambda seen: tree((), seen))
    options: dict[str, Any] = {"beam_size": 3, "at_limit": "end"}
    found = beam_generate(model, prompts, 7, stop=EOS, pad=PAD, attention_mask=mask, **options)
    for row, n in enumerate(lengths):
        head = tuple(prompts[row, :n].tolist())
        alone = FunctionModel(lambda source, prefix, head=head: tree((), (*head, *prefix[1:])))
        expected = beam_search(alone, torch.tensor([[5]]), **SPECIAL, beam_size=3, max_extra_tokens=6)
        assert target(found[row, prompts.shape[1] :]) == target(expected[0])


def test_several_tokens_may_end_a_continuation_or_none() -> None:
    tree = random_tree(5, 11)
    model = FunctionDecoder(lambda seen: tree((), seen))
    prompt = torch.tensor([[3, 4], [4, 4]])
    free = beam_generate(model, prompt, 6, beam_size=2)
    assert free.shape == (2, 8)
    stopped = beam_generate(model, prompt, 6, beam_size=2, stop=[0, 1], pad=-1, length_penalty=0.0)[
        :, 2:
    ].tolist()
    for row in stopped:
        ends = [i for i, token in enumerate(row) if token in (0, 1)]
        assert set(row[(ends or [6])[0] + 1 :]) <= {-1}
    assert any(token in (0, 1) for row in stopped for token in row)
    assert beam_generate(model, prompt, 0).tolist() == prompt.tolist()
    every = beam_generate(model, prompt, 6, beam_size=2, stop=range(5))
    assert every.shape == (2, 3)  # whatever comes first is the end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "mean"}, "^normalization must be gnmt or power, got 'mean'$"),
        ({"stopping": "early"}, "^stopping must be full or worse or never, got 'early'$"),
        ({"at_limit": "stop"}, "^at_limit must be end or cut, got 'stop'$"),
        ({"at_limit": "end"}, '^at_limit "end" needs a token to end with; give stop, or at_limit="cut"$'),
        ({"max_new_tokens": 9}, "^2 tokens and 9 new ones are more than max_seq_len 8"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: dict[str, Any], message: str) -> None:
    model = FunctionDecoder(lambda seen: [0.0] * 5, max_seq_len=8)
    with pytest.raises(ValueError, match=message):
        beam_generate(model, torch.tensor([[3, 4]]), **{"max_new_tokens": 2, **options})
