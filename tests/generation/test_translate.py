"""Translation with a model that copies its source: what comes out must be what went in."""

from __future__ import annotations

import pytest

from tests.generation.toys import EOS, FunctionModel, Prefix
from transformer.data import ByteTokenizer
from transformer.generation import translate

SENTENCES = [
    "Zwei Männer – ein Hund.",
    "a",
    "",
    "日本語の文",
    "  ",
    "ganz viel länger als alle anderen hier",
    "b c",
    "x",
]


def copier(vocab_size: int = 259) -> FunctionModel:
    """Sources end in `eos`, so copying ends by itself."""

    def logits(source: Prefix, prefix: Prefix) -> list[float]:
        return [
            30.0 if token == source[min(len(prefix), len(source)) - 1] else 0.0 for token in range(vocab_size)
        ]

    return FunctionModel(logits)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_translations_come_back_whole_and_in_order(beam_size: int, batch_tokens: int) -> None:
    found = translate(copier(), ByteTokenizer(), SENTENCES, beam_size=beam_size, batch_tokens=batch_tokens)
    assert found == [sentence if sentence.strip() else "" for sentence in SENTENCES]


def test_batches_keep_to_the_budget_and_put_like_lengths_together() -> None:
    model = copier()
    lengths = [1, 9, 2, 8, 3, 7, 4, 6, 5] * 3
    translate(model, ByteTokenizer(), ["x" * n for n in lengths], beam_size=2, batch_tokens=80)
    assert model.widths == [(9, 4), (6, 6), (5, 8), (4, 9), (3, 10)]  # at most 40 tokens, `eos` included


def test_nothing_to_translate() -> None:
    model = copier()
    assert translate(model, ByteTokenizer(), []) == []
    assert translate(model, ByteTokenizer(), ["", " \t"]) == ["", ""]
    assert not model.calls


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_autocast(precision: str) -> None:
    model = copier()
    assert translate(model, ByteTokenizer(), ["abc"], precision=precision) == ["abc"]
    assert {autocast for _, autocast, _ in model.calls} == {precision == "bf16"}


def test_the_options_of_the_search_reach_it() -> None:
    def never_ends(source: Prefix, prefix: Prefix) -> list[float]:
        return [0.0, 0.0, -50.0, *[0.0] * 64, 3.0, *[0.0] * 40]

    model = FunctionModel(never_ends)
    assert translate(model, ByteTokenizer(), ["ab"], beam_size=1, max_extra_tokens=4) == ["@" * 6]
    assert max(rows for rows, _, _ in model.calls) == 1
    translate(model, ByteTokenizer(), ["ab"], beam_size=5, max_extra_tokens=4)
    assert max(rows for rows, _, _ in model.calls) == 5

    def short_or_long(source: Prefix, prefix: Prefix) -> list[float]:
        return [-9.0, -9.0, 1.0 if prefix == (1,) else 0.0, 1.0, *[-9.0] * 60]

    model = FunctionModel(short_or_long)
    lengths = [
        len(translate(model, ByteTokenizer(), ["abcdef"], length_penalty=alpha)[0]) for alpha in (0.0, 5.0)
    ]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_tokens": 0}, "^batch_tokens must be at least 1, got 0; 8192 suits most machines$"),
        ({"precision": "fp8"}, "^precision must be fp32 or bf16, got 'fp8'$"),
        ({"beam_size": 0}, "^beam_size must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translate(copier(), ByteTokenizer(), ["a"], **options)


def test_eos_is_what_a_source_ends_in() -> None:
    seen = []

    def logits(source: Prefix, prefix: Prefix) -> list[float]:
        seen.append(source)
        return [0.0, 0.0, 9.0, *[0.0] * 256]

    assert translate(FunctionModel(logits), ByteTokenizer(), ["a"]) == [""]
    assert seen == [(ord("a") + 3, EOS)]
