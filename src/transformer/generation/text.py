"""Texts in, texts out: a prompt is continued piece by piece, no character ever split between two."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..data import StreamDecoder, Tokenizer
from .beam_search import BeamOptions, beam_generate
from .generate import stream
from .protocol import Decoder, State
from .sampling import Sampling
from .speculative import Drafter, speculate
from .stopping import StopStrings

S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Writing:
    """How a text is continued.

    stop_strings: the text ends before the first of them. beams: search instead of sampling; the best text found.
    drafter: what guesses tokens ahead, for the model to accept or reject; the text is as without.
    """

    max_new_tokens: int = 200
    sampling: Sampling = Sampling()
    stop_strings: Sequence[str] = ()
    beams: BeamOptions | None = None
    drafter: Drafter | None = None

    def __post_init__(self) -> None:
        if self.beams is not None and (self.drafter is not None or self.sampling.repetition_penalty != 1):
            raise ValueError(
                "beam search takes no draft and no repetition penalty; leave out one or the other"
            )


def continue_text(
    model: Decoder[S], tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling
) -> str:
    """Return the prompt continued by the model, up to its end-of-text token if it writes one.

    The model's longest sequence bounds the text: what would not fit is not written.
    """
    return prompt + "".join(stream_text(model, tokenizer, prompt, max_new_tokens, sampling))


def stream_text(
    model: Decoder[S], tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling
) -> Iterator[str]:
    """Yield the model's continuation of the prompt piece by piece."""
    return write(model, tokenizer, prompt, Writing(max_new_tokens, sampling))


def write(
    model: Decoder[S], tokenizer: Tokenizer, prompt: str, writing: Writing, sample: int = 0
) -> Iterator[str]:
    """Yield the continuation of the prompt piece by piece; `sample` numbers several of one prompt.

    ValueError for a prompt with tokens that the model does not have, and what `generate` refuses.
    """
    ids = tokenizer.prompt(prompt)
    new = write_tokens(model, ids, tokenizer.stops, writing, sample)
    pieces = show(new, tokenizer, tokenizer.stops, writing.stop_strings)
    return pieces if prompt or not tokenizer.blank_first else _without_blank(pieces)


def write_tokens(
    model: Decoder[S], ids: Sequence[int], stops: Collection[int], writing: Writing, sample: int = 0
) -> Iterator[int]:
    """Yield the tokens with which the model continues those given, as far as it can number them."""
    rows: Any = model.config.vocab_size if hasattr(model, "config") else None
    if rows is not None and max(ids, default=0) >= rows:
        raise ValueError(
            f"the tokenizer has the token {max(ids)}, but the model only those below {rows}; "
            "give the tokenizer that belongs to the model"
        )
    limit = model.stack.position.max_seq_len
    room = writing.max_new_tokens if limit is None else min(writing.max_new_tokens, max(0, limit - len(ids)))
    tokens = torch.tensor([list(ids)], device=next(p.device for p in model.parameters()))
    if writing.beams is not None:
        beams = writing.beams
        found = beam_generate(model, tokens, room, stop=stops, pad=-1, **vars(beams))
        return (token for token in found[0, len(ids) :].tolist() if token != -1)
    if writing.drafter is not None:
        return speculate(model, writing.drafter, tokens, room, writing.sampling, stop=stops, first_row=sample)
    columns = stream(model, tokens, room, writing.sampling, stop=stops, first_row=sample)
    return (int(column[0]) for column in columns)


def show(
    tokens: Iterable[int], tokenizer: Tokenizer, stops: Collection[int], stop_strings: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the text of tokens as they come, up to a token of `stops` or one of the strings, which are not shown."""
    decoder, strings = StreamDecoder(tokenizer), StopStrings(stop_strings)
    for token in tokens:
        if token in stops:
            break
        known = token < tokenizer.vocab_size  # a model may have more rows than its tokenizer has tokens
        if piece := strings.push(decoder.push(token) if known else ""):
            yield piece
        if strings.done:
            return
    if rest := strings.push(decoder.finish()) + strings.finish():
        yield rest


def _without_blank(pieces: Iterator[str]) -> Iterator[str]:
    """Leave out the blank that some tokenizers put before every text."""
    for first in pieces:
        yield first.removeprefix(" ")
        break
    yield from pieces
