"""Made tasks: every problem is solved here a second time, from what it shows, by other means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transformer.data import DataError
from transformer.data.loading import parse_tokenizer
from transformer.data.symbols import SymbolTokenizer
from transformer.data.synthetic import (
    AssociativeRecallTask,
    CopyingTask,
    DyckTask,
    InductionTask,
    ModularTask,
    ParityTask,
    SelectiveCopyingTask,
    SortingTask,
    SyntheticData,
)

TASKS: tuple[Any, ...] = (
    CopyingTask(items=7, gap=5),
    CopyingTask(items=3, gap=0, alphabet=2),
    SelectiveCopyingTask(items=5, context=40),
    InductionTask(context=64),
    InductionTask(context=4),
    AssociativeRecallTask(pairs=4, context=64, symbols=64),
    AssociativeRecallTask(pairs=16, context=64, symbols=34, noise=True),
    SortingTask(items=9, alphabet=6),
    DyckTask(kinds=3, depth=4, context=30),
    DyckTask(kinds=1, depth=1, context=2),
    ParityTask(context=20),
    ModularTask("divide", 11),
    ModularTask("subtract", 7),
)
each = pytest.mark.parametrize("task", TASKS, ids=repr)


def solve(task: Any, tokens: list[int]) -> dict[int, int]:
    """The answers, by place, from the symbols alone."""
    if isinstance(task, CopyingTask | SortingTask):
        go = tokens.index(task.alphabet + 1)
        items = [symbol for symbol in tokens[:go] if symbol]
        answer = sorted(items) if isinstance(task, SortingTask) else items
        assert tokens[go + 1 :] == answer[:-1]
        return {go + i: symbol for i, symbol in enumerate(answer)}
    if isinstance(task, SelectiveCopyingTask):
        items = [symbol for symbol in tokens[: task.context] if symbol]
        assert set(tokens[task.context :]) == {task.alphabet + 1}
        return {task.context + i: symbol for i, symbol in enumerate(items)}
    if isinstance(task, InductionTask):
        first = tokens.index(task.alphabet + 1)
        assert tokens.count(task.alphabet + 1) == 2 and first < task.context - 2
        return {task.context - 1: tokens[first + 1]}
    if isinstance(task, AssociativeRecallTask):
        told = 2 * task.pairs
        table = dict(zip(tokens[:told:2], tokens[1:told:2], strict=True))
        assert len(table) == task.pairs and all(0 < key < task.symbols // 2 <= v for key, v in table.items())
        if task.noise:
            return {}
        found = {t: table[tokens[t]] for t in range(told, len(tokens)) if tokens[t]}
        assert len(found) == task.pairs
        return found
    if isinstance(task, DyckTask):
        return {}
    if isinstance(task, ParityTask):
        return {t: 1 + tokens[: t + 1].count(2) % 2 for t in range(len(tokens))}
    a, op, b, equals = tokens
    p = task.modulus
    assert (op, equals) == (p + 1, p + 2)
    fitting = [
        c
        for c in range(p)
        if (c * (b - 1) % p == a - 1 if task.operation == "divide" else (c + b - 1) % p == a - 1)
    ]
    assert len(fitting) == 1
    return {3: fitting[0] + 1}


@each
def test_every_answer_is_the_right_one(task: Any) -> None:
    problems = task.draw(np.random.default_rng(1), 200)
    assert problems.tokens.shape == problems.labels.shape == problems.asked.shape == (200, task.length)
    assert problems.tokens.min() >= 0 and problems.tokens.max() < task.vocab_size
    for tokens, labels, asked in zip(problems.tokens, problems.labels, problems.asked, strict=True):
        answers = solve(task, tokens.tolist())
        if answers:
            assert np.flatnonzero(asked).tolist() == sorted(answers)
            assert [int(labels[t]) for t in sorted(answers)] == [answers[t] for t in sorted(answers)]
    assert len(np.unique(problems.labels[problems.asked])) > 1 or task.vocab_size <= 3


def test_noise_asks_the_same_questions() -> None:
    task = AssociativeRecallTask(pairs=3, context=40, symbols=40, noise=True)
    problems = task.draw(np.random.default_rng(3), 100)
    for tokens, labels, asked in zip(problems.tokens, problems.labels, problems.asked, strict=True):
        table = dict(zip(tokens[:6:2].tolist(), tokens[1:6:2].tolist(), strict=True))
        assert asked.sum() == 3
        assert {int(tokens[t]): int(labels[t]) for t in np.flatnonzero(asked)} == table
    assert (problems.tokens[:, 6:] != 0).mean() > 0.9


def test_recall_asks_more_often_at_short_distances_when_the_power_is_small() -> None:
    def mean_place(power: float) -> float:
        task = AssociativeRecallTask(pairs=2, context=128, symbols=64, power=power)
        return float(np.nonzero(task.draw(np.random.default_rng(0), 500).asked)[1].mean())

    assert mean_place(0.01) + 20 < mean_place(1.0)
    assert mean_place(1.0) == pytest.approx((4 + 126) / 2, abs=4)  # all places alike


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_words_of_brackets_are_balanced_and_no_deeper_than_allowed(depth: int) -> None:
    task = DyckTask(kinds=3, depth=depth, context=40)
    problems = task.draw(np.random.default_rng(2), 300)
    words = np.concatenate([problems.tokens, problems.labels[:, -1:]], axis=1)
    deepest = 0
    for word, asked in zip(words, problems.asked, strict=True):
        stack: list[int] = []
        for t, symbol in enumerate(word.tolist()):
            assert t == 0 or asked[t - 1] == (symbol > 3)
            if symbol <= 3:
                stack.append(symbol)
            else:
                assert stack.pop() == symbol - 3
            deepest = max(deepest, len(stack))
        assert not stack
    assert deepest == depth


def test_a_table_is_split_into_two_parts_without_overlap() -> None:
    corpus = SyntheticData(ModularTask("divide", 97, 0.5)).load()
    seen = {
        split: {tuple(row) for row in next(iter(corpus.evaluation(split).sets.values())).tokens.tolist()}
        for split in ("train", "validation")
    }
    assert len(seen["train"]) == len(seen["validation"]) == 97 * 96 // 2
    assert not seen["train"] & seen["validation"]
    batches = [corpus.stream(0).batch(step).tokens for step in range(97 * 96 // 2 // 64)]
    rows = {tuple(row) for row in torch.cat(batches).tolist()}
    assert rows <= seen["train"] and len(rows) == len(batches) * 64


@pytest.mark.parametrize("examples", [None, 50])
def test_a_batch_is_a_function_of_seed_and_step_and_parts_make_the_whole(examples: int | None) -> None:
    corpus = SyntheticData(SortingTask(), batch_size=10, examples=examples).load()
    stream, again = corpus.stream(3), SyntheticData(SortingTask(), batch_size=10, examples=examples).load()
    for step in (0, 7, 12):
        whole, same = stream.batch(step), again.stream(3).batch(step)
        assert torch.equal(whole.tokens, same.tokens) and torch.equal(whole.labels, same.labels)
        parts = [stream.batch(step, part, 3) for part in range(3)]
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        assert torch.equal(torch.cat([part.asked for part in parts]), whole.asked)
    assert not torch.equal(stream.batch(0).tokens, stream.batch(1).tokens)
    assert not torch.equal(stream.batch(0).tokens, corpus.stream(4).batch(0).tokens)
    for arguments in ((0, 2, 2), (-1, 0, 1)):
        with pytest.raises(ValueError, match="expected 0 <= step and 0 <= part < parts"):
            stream.batch(*arguments)


def test_a_fixed_set_is_gone_through_once_an_epoch() -> None:
    corpus = SyntheticData(SortingTask(), batch_size=10, examples=50).load()
    batches = torch.cat([corpus.stream(0).batch(step).tokens for step in range(10)])
    first, second = ({tuple(row) for row in half.tolist()} for half in batches.split(50))
    assert first == second and len(first) == 50
    assert not torch.equal(batches[:50], batches[50:])


def test_examinations_do_not_depend_on_the_seed_of_training_and_are_not_trained_on() -> None:
    data = SyntheticData(SelectiveCopyingTask(8, 64), examples=500, lengths=(64, 256), validation_examples=30)
    corpus = data.load()
    assert corpus.splits == ("train", "validation", "test") and corpus.longest == 264
    sets = corpus.evaluation("test").sets
    assert {n: problems.tokens.shape for n, problems in sets.items()} == {64: (30, 72), 256: (30, 264)}
    trained = {tuple(row) for row in corpus.evaluation("train").sets[72].tokens.tolist()}
    examined = {tuple(row) for row in corpus.evaluation().sets[72].tokens.tolist()}
    assert len(trained) == 500 and not trained & examined
    assert sum(len(batch.tokens) for batch in corpus.evaluation("test").batches(256)) == 30
    other = replace(data, seed=1).load().evaluation().sets[72].tokens
    assert not np.array_equal(other, corpus.evaluation().sets[72].tokens)


def test_symbols_are_written_as_numbers() -> None:
    tokenizer = SymbolTokenizer(40)
    assert tokenizer.encode(" 3 17\n4 ") == [3, 17, 4]
    assert tokenizer.decode([3, 17, 4]) == "3 17 4 "
    assert parse_tokenizer(tokenizer.to_bytes(), "t").fingerprint == tokenizer.fingerprint
    for text in ("3 x", "40", "-1", "٣"):
        with pytest.raises(DataError, match="is no symbol; symbols are the numbers from 0 to 39"):
            tokenizer.encode(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectiveCopyingTask(9, 8), "9 items have no room in a context of 8"),
        (lambda: AssociativeRecallTask(9, 32), "9 pairs and their questions need a context of 36, got 32"),
        (lambda: AssociativeRecallTask(4, 64, 8), "8 symbols have no 4 different keys"),
        (lambda: AssociativeRecallTask(power=0.0), "power must be more than 0"),
        (lambda: DyckTask(context=7), "even length, got task.context 7"),
        (lambda: ModularTask(modulus=91), "must be a prime, got 91"),
        (lambda: SyntheticData(ModularTask(), lengths=(8,)), "task modular have one length"),
        (lambda: SyntheticData(DyckTask(), lengths=(9,)), "even length, got task.context 9"),
        (lambda: SyntheticData().load().evaluation("test"), "no split 'test'; it has train, validation"),
        (lambda: SyntheticData().prepare(Path("new")), "made when they are needed"),
    ],
)
def test_mistakes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
