"""Continue texts with a decoder-only model, one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data import StreamDecoder, Tokenizer
from .prompts import as_tokens, at_last_real, check_prompts
from .protocol import Decoder, State, evaluating
from .sampling import Sampling

S = TypeVar("S", bound=State)


def generate(
    model: Decoder[S],
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    *,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
    stop: int | Collection[int] | None = None,
    pad: int = 0,
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
) -> Int[Tensor, "b _"]:
    """Return `tokens` followed by up to `max_new_tokens` more for each row.

    temperature (0 is greedy), top_k, top_p, min_p, seed: as in `Sampling`. stop: a token that ends its row,
    or several; `pad` fills the row after it, and nothing is added once all rows have ended. attention_mask:
    True (or 1) at real tokens; prompts may be padded on either side.

    ValueError for options out of range, an empty prompt, more tokens than the model can number, or logits that
    are not finite.
    """
    sampling = Sampling(float(temperature), top_k, top_p, min_p, seed)
    new = stream(model, tokens, max_new_tokens, sampling, stop=stop, pad=pad, attention_mask=attention_mask)
    return torch.cat([tokens, *(column[:, None] for column in new)], dim=1)


def stream(
    model: Decoder[S],
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stop: int | Collection[int] | None = None,
    pad: int = 0,
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
) -> Iterator[Int[Tensor, " b"]]:
    """Yield the next token of every row as soon as it is chosen; otherwise as `generate`.

    Rows that have ended leave the batch. A row's tokens depend on its prompt, its number and the seed, not on
    the other rows.
    """
    mask = None if attention_mask is None else attention_mask.bool()
    check_prompts(tokens, max_new_tokens, mask, model.stack.position.max_seq_len)
    return _stream(model, tokens, max_new_tokens, sampling, as_tokens(stop, tokens.device), pad, mask)


def _stream(
    model: Decoder[S],
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    sampling: Sampling,
    stops: Int[Tensor, " _"],
    pad: int,
    mask: Bool[Tensor, "b t"] | None,
) -> Iterator[Int[Tensor, " b"]]:
    state, rows = model.initial_state(), torch.arange(len(tokens), device=tokens.device)
    column = tokens.new_full((len(tokens),), pad)
    for step in range(max_new_tokens):
        with evaluating(model):  # not around the yield: the caller's own work in between is its own business
            if step == 0:
                logits = at_last_real(model.decode(tokens, state, mask), mask)
            else:
                logits = model.decode(column[rows, None], state)[:, -1]
            chosen = sampling.choose(logits, step, rows.tolist())
            column = torch.full_like(column, pad).index_copy(0, rows, chosen)
            going = (~torch.isin(chosen, stops)).nonzero()[:, 0]
            if len(going) < len(rows):
                rows = rows[going]
                state.select(going)
        yield column.clone()
        if not len(rows):
            return


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
    """Yield the model's continuation of the prompt piece by piece, no character ever split between two."""
    ids = tokenizer.encode(prompt) or [tokenizer.bos]
    limit = model.stack.position.max_seq_len
    room = max_new_tokens if limit is None else min(max_new_tokens, max(0, limit - len(ids)))
    device = next(parameter.device for parameter in model.parameters())
    decoder = StreamDecoder(tokenizer)
    for column in stream(model, torch.tensor([ids], device=device), room, sampling, stop=tokenizer.eos):
        if int(column[0]) != tokenizer.eos:
            yield decoder.push(int(column[0]))
    yield decoder.finish()
