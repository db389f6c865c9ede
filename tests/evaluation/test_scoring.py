"""Continuations: their log-likelihood is the sum of their tokens', by the rule that says which tokens are theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from transformer.data import ByteTokenizer, Tokenizer
from transformer.evaluation.scoring import Row, as_row, score, score_rows, windows
from transformer.models import DecoderOnly, build, gpt, llama

PAIRS = [
    ("to be or not to be, that is", " the question"), ("a", "b"), ("", "from nothing"), ("blanks move  ", "over"),
    ("x" * 30, " y"), ("é", "ü"), ("a", "b"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> DecoderOnly:
    torch.manual_seed(1)
    built = build(llama(259, 16, 2, 2, d_ff=24, max_seq_len=48)).double()
    assert isinstance(built, DecoderOnly)
    return built


def likelihoods(model: DecoderOnly, tokens: list[int], n_scored: int) -> list[float]:
    """By the definition, token by token."""
    model.eval()
    found = []
    for end in range(len(tokens) - n_scored, len(tokens)):
        with torch.no_grad():
            probabilities = model(torch.tensor([tokens[:end]]))[0, -1].exp()
        found.append(float((probabilities[tokens[end]] / probabilities.sum()).log()))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_scores_are_sums_over_the_tokens_of_the_continuation(model: DecoderOnly, batch_tokens: int) -> None:
    model.train()
    scores = score(model, ByteTokenizer(), PAIRS, batch_tokens=batch_tokens)
    assert model.training, "the mode is as it was"
    for (context, continuation), found in zip(PAIRS, scores, strict=True):
        blanks = context[len(context.rstrip()) :]
        read, scored = context.rstrip().encode(), (blanks + continuation).encode()
        tokens = [byte + 3 for byte in read + scored]
        tokens = tokens if read else [ByteTokenizer.bos, *tokens]
        expected = likelihoods(model, tokens, len(scored))
        assert found.n_tokens == len(expected)
        assert found.log_likelihood == pytest.approx(sum(expected), abs=1e-9)


def test_greedy_is_all_tokens_or_none(model: DecoderOnly) -> None:
    tokens = [5, 9, 200]
    for _ in range(4):
        with torch.no_grad():
            tokens.append(int(model.eval()(torch.tensor([tokens]))[0, -1].argmax()))
    other = (tokens[-1] + 1) % 259
    rows = [
        Row(tokens, 4),
        Row([*tokens[:-1], other], 4),
        Row([*tokens[:-2], other, tokens[-1]], 4),
        Row(tokens, 1),
    ]
    assert [one.greedy for one in score_rows(model, rows)] == [True, False, False, True]


class Merging(Tokenizer):
    """Takes the longest piece that fits, as merges do: what follows decides how a text is spelled."""

    pieces = ("", "", "", "a", "b", "ab", " ", " b", "c", "  ")

    def __init__(self) -> None:
        super().__init__([piece.encode() for piece in self.pieces])

    def encode(self, text: str) -> list[int]:
        found: list[int] = []
        while text:
            piece = max((one for one in self.pieces if one and text.startswith(one)), key=len)
            found.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return found

    def payload(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("context", "continuation", "tokens", "n_scored"),
    [
        ("c", "a", [8, 3], 1),
        ("c", " b", [8, 7], 1),
        ("c ", "b", [8, 7], 1),  # the blank goes to the word
        ("c  ", "b", [8, 9, 4], 2),
        ("ca", "b", [8, 5], 1),  # a token across the boundary
        ("a", "b", [1, 5], 1),  # and nothing is left to read
        ("ca", "bc", [8, 5, 8], 2),
        ("", "c", [1, 8], 1),
        (" ", "c", [1, 6, 8], 2),
    ],
)
def test_which_tokens_are_scored(context: str, continuation: str, tokens: list[int], n_scored: int) -> None:
    model = build(gpt(10, 8, 2, 1, max_seq_len=16))
    assert isinstance(model, DecoderOnly)
    assert as_row(model, Merging(), context, continuation) == Row(tokens, n_scored)


class Begun(Merging):
    """A tokenizer whose makers put a token before every text, and whose texts need not have one of their own."""

    bos, eos = -1, 2

    def prompt(self, text: str) -> list[int]:
        return [0, *self.encode(text)]


@pytest.mark.parametrize(
    ("context", "continuation", "tokens", "n_scored"),
    [("ca", "b", [0, 8, 5], 1), ("a", "b", [0, 5], 1), ("", "c", [0, 8], 1), ("c", " b", [0, 8, 7], 1)],
)
def test_what_stands_before_every_text_is_never_scored(
    context: str, continuation: str, tokens: list[int], n_scored: int
) -> None:
    model = build(gpt(10, 8, 2, 1, max_seq_len=16))
    assert isinstance(model, DecoderOnly)
    assert as_row(model, Begun(), context, continuation) == Row(tokens, n_scored)


def test_a_text_begins_with_bos_or_eos_or_cannot() -> None:
    model, tokenizer = build(gpt(10, 8, 2, 1, max_seq_len=16)), Merging()
    assert isinstance(model, DecoderOnly)
    tokenizer.bos = -1
    assert as_row(model, tokenizer, "", "c") == Row([2, 8], 1)
    tokenizer.eos = -1
    with pytest.raises(
        ValueError, match=r"^the tokenizer has neither bos nor eos to begin a text with; give a"
    ):
        as_row(model, tokenizer, "", "c")


def test_the_beginning_of_a_long_context_is_cut_off(model: DecoderOnly) -> None:
    tokenizer, long = ByteTokenizer(), "so long a context that it does not fit into the model at all"
    row = as_row(model, tokenizer, long, " end")
    assert (
        len(row.tokens) == 49 and bytes(token - 3 for token in row.tokens) == (long + " end").encode()[-49:]
    )
    assert as_row(model, tokenizer, "", "x" * 48) == Row([1, *(ord("x") + 3 for _ in range(48))], 48)
    for continuation in ("", "x" * 49):
        with pytest.raises(
            ValueError, match=r"^the continuation '.*'…? has \d+ tokens; give one of 1 to 48$"
        ):
            score(model, tokenizer, [(long, continuation)])


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 10])
def test_windows_predict_each_token_once_from_as_much_as_fits(length: int) -> None:
    tokens = list(range(10, 10 + length))
    rows = windows(tokens, 0, 4)
    predicted: Iterable[int] = [token for row in rows for token in row.tokens[-row.n_scored :]]
    assert list(predicted) == tokens
    assert all(len(row.tokens) == min(length, 4) + 1 for row in rows)
    assert rows[0].tokens[0] == 0
    if length == 10:
        assert rows == [
            Row([0, 10, 11, 12, 13], 4),
            Row([13, 14, 15, 16, 17], 4),
            Row([15, 16, 17, 18, 19], 2),
        ]
