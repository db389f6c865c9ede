"""Stop strings: nothing of one is ever shown, however the text is cut into pieces."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.generation.toys import FunctionDecoder
from transformer.data import ByteTokenizer
from transformer.generation import Sampling, StopStrings, Writing, write


def whole(text: str, strings: list[str]) -> str:
    """The text before the stop string that is complete first; of several that are, the longest."""
    for end in range(1, len(text) + 1):
        found = [s for s in strings if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(
    text=st.text("abc", max_size=30),
    strings=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_the_text_ends_at_the_same_place_however_it_is_cut(
    text: str, strings: list[str], cuts: list[int]
) -> None:
    stop, shown = StopStrings(strings), ""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for first, last in itertools.pairwise(places):
        shown += stop.push(text[first:last])
        assert whole(text, strings).startswith(shown)  # never more than will stay
    assert shown + stop.finish() == whole(text, strings)
    assert stop.done == (whole(text, strings) != text or any(s in text for s in strings))


def test_nothing_is_held_back_without_need() -> None:
    stop = StopStrings(["\nUser:"])
    assert [stop.push(piece) for piece in ("Hel", "lo\n", "Us", "e it.", "\nUser", ": more", "x")] == [
        "Hel", "lo", "", "\nUse it.", "", "", "",
    ]  # fmt: skip
    assert stop.done and stop.finish() == ""
    with pytest.raises(ValueError, match=r"^a stop string must not be empty; leave it out to stop nowhere$"):
        StopStrings(["a", ""])


def test_a_text_stops_within_a_token_and_characters_stay_whole() -> None:
    tokenizer, text = ByteTokenizer(), "naïve 😀 END and more"
    ids = tokenizer.encode(text)

    def says(seen: tuple[int, ...]) -> list[float]:
        following = [*ids, tokenizer.eos][min(len(seen) - 1, len(ids))]
        return [30.0 if token == following else 0.0 for token in range(tokenizer.vocab_size)]

    model = FunctionDecoder(says)
    greedy = Sampling(0.0)
    pieces = list(write(model, tokenizer, "", Writing(100, greedy, ["END"])))
    assert "".join(pieces) == "naïve 😀 " and all("\ufffd" not in piece for piece in pieces)
    calls = len(model.calls)
    assert calls == len("naïve 😀 END".encode()), "nothing is written after the stop string"
    assert "".join(write(model, tokenizer, "", Writing(100, greedy))) == text
    assert "".join(write(model, tokenizer, "", Writing(9, greedy))) == "naïve \ufffd\ufffd"[:7]
    assert torch.is_grad_enabled()
