"""Continue prompts with a decoder-only model, one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.cache import Storage
from .prompts import as_tokens, at_last_real, check_prompts, seen_tokens
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
    repetition_penalty: float | int = 1.0,
    stop: int | Collection[int] | None = None,
    pad: int = 0,
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
    cache: str = "growing",
) -> Int[Tensor, "b _"]:
    """Return `tokens` followed by up to `max_new_tokens` more for each row.

    temperature (0 is greedy), top_k, top_p, min_p, seed, repetition_penalty: as in `Sampling`. cache: "growing", or
    "static", which takes the memory for all tokens at the beginning (`base/cache.py`). stop: a token that ends its row,
    or several; `pad` fills the row after it, and nothing is added once all rows have ended. attention_mask:
    True (or 1) at real tokens; prompts may be padded on either side.

    ValueError for options out of range, an empty prompt, more tokens than the model can number, or logits that
    are not finite.
    """
    sampling = Sampling(float(temperature), top_k, top_p, min_p, seed, float(repetition_penalty))
    new = stream(
        model,
        tokens,
        max_new_tokens,
        sampling,
        stop=stop,
        pad=pad,
        attention_mask=attention_mask,
        cache=cache,
    )
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
    cache: str = "growing",
    first_row: int = 0,
) -> Iterator[Int[Tensor, " b"]]:
    """Yield the next token of every row as soon as it is chosen; otherwise as `generate`.

    Rows that have ended leave the batch. A row's tokens depend on its prompt, its number (`first_row` is that of the
    first) and the seed, not on the other rows.
    """
    mask = None if attention_mask is None else attention_mask.bool()
    check_prompts(tokens, max_new_tokens, mask, model.stack.position.max_seq_len)
    if cache not in ("growing", "static"):
        raise ValueError(f"cache must be growing or static, got {cache!r}")
    storage = Storage(capacity=max(1, tokens.shape[1] + max_new_tokens) if cache == "static" else None)
    new = _stream(
        model, tokens, max_new_tokens, sampling, as_tokens(stop, tokens.device), mask, storage, first_row
    )
    return (torch.full((len(tokens),), pad, device=tokens.device).index_copy(0, rows, x) for rows, x in new)


def _stream(
    model: Decoder[S],
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    sampling: Sampling,
    stops: Int[Tensor, " _"],
    mask: Bool[Tensor, "b t"] | None,
    storage: Storage,
    first_row: int,
) -> Iterator[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
    """Yield the rows that go on, and the next token of each."""
    state, rows = model.initial_state(storage), torch.arange(len(tokens), device=tokens.device)
    chosen, seen, parts = rows, None, list(model.modules())
    for step in range(max_new_tokens):
        with evaluating(
            model, parts
        ):  # not around the yield: the caller's own work in between is its own business
            if step == 0:
                logits = at_last_real(model.decode(tokens, state, mask), mask)
                seen = seen_tokens(tokens, mask, logits) if sampling.repetition_penalty != 1 else None
            else:
                logits = model.decode(chosen[:, None], state)[:, -1]
            chosen = sampling.choose(logits, step, (rows + first_row).tolist(), seen)
            seen = None if seen is None else seen.scatter(1, chosen[:, None], True)
            now = rows, chosen
            going = (~torch.isin(chosen, stops)).nonzero()[:, 0]
            if len(going) < len(rows):
                rows, chosen = rows[going], chosen[going]
                seen = None if seen is None else seen[going]
                state.select(going)
        yield now
        if not len(rows):
            return
