"""How probable a model finds a continuation of a text, and whether it would have written it itself.

    log p(continuation | context) = Σ_t log p(token_t | tokens before it),  over the continuation's tokens

The two are tokenized together, because a tokenizer may spell a word after a blank otherwise than at a beginning:

1. Blanks at the end of the context are moved to the continuation, where most tokenizers keep them.
2. The whole, context and continuation in one, is tokenized, and so is the context alone. What the two have in common
   from the beginning is the context; all tokens after it are scored. Usually that is all of the context's tokens. Where
   a token reaches across the boundary it is scored, because a part of it belongs to the continuation.
3. In front stands what the model's makers put before every text (`Tokenizer.prompt`), which mostly is nothing. Where
   nothing would be left to read from, `bos` does, or `eos` where there is no `bos`.

The rule is that of lm-evaluation-harness (Gao et al., version 0.4), except that this cuts off as many tokens as the
context has alone: the same, wherever no token reaches across.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Tokenizer
from ..generation import evaluating
from ..models import DecoderOnly

Pair = tuple[str, str]
BATCH_TOKENS = 1024
"""Tokens of a batch, padding included: with a vocabulary of 50,000 their logits fill 200 MB."""


@dataclass(frozen=True)
class Score:
    """log_likelihood: in nats. greedy: each token is the most probable at its place. n_tokens: how many."""

    log_likelihood: float
    greedy: bool
    n_tokens: int


@dataclass(frozen=True)
class Row:
    """Tokens, of which the last `n_scored` are to be predicted from those before them."""

    tokens: Sequence[int]
    n_scored: int


def score(
    model: DecoderOnly, tokenizer: Tokenizer, pairs: Sequence[Pair], *, batch_tokens: int = BATCH_TOKENS
) -> list[Score]:
    """Return the score of each (context, continuation), in the order given.

    Of a context too long for the model, the beginning is cut off. ValueError for a continuation that has no token, or
    more than the model can read.
    """
    return score_rows(model, [as_row(model, tokenizer, *pair) for pair in pairs], batch_tokens=batch_tokens)


def as_row(model: DecoderOnly, tokenizer: Tokenizer, context: str, continuation: str) -> Row:
    """Tokenize a context and its continuation by the rule above."""
    bare, text = context.rstrip(), context + continuation
    tokens = tokenizer.prompt(text)
    shared = len(tokens) - len(tokenizer.encode(text))  # of what stands in front
    if bare:
        shared = _in_common(tokenizer.prompt(bare), tokens)
    n_scored = len(tokens) - shared
    if not shared:
        tokens = [start_of_text(tokenizer), *tokens]
    limit = longest(model)
    if not n_scored or (limit is not None and n_scored > limit):
        told = f"{continuation[:40]!r}{'…' if len(continuation) > 40 else ''}"
        raise ValueError(
            f"the continuation {told} has {n_scored} tokens; give one of 1 to {limit or 'any number of'}"
        )
    return Row(tokens if limit is None else tokens[-limit - 1 :], n_scored)


def start_of_text(tokenizer: Tokenizer) -> int:
    """The token that says that a text begins; ValueError where there is none."""
    for token in (tokenizer.bos, tokenizer.eos):
        if token >= 0:
            return token
    raise ValueError("the tokenizer has neither bos nor eos to begin a text with; give a context")


def _in_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def longest(model: DecoderOnly) -> int | None:
    """The number of tokens that a model can read at once, null for any number."""
    limit: int | None = model.stack.position.max_seq_len
    return limit


def windows(tokens: Sequence[int], first: int, width: int) -> list[Row]:
    """Cut a text so that each token is predicted once, from as many tokens before it as `width` allows.

    `first` stands before the text. All rows but a short text's only one read `width` tokens; the last one scores only
    those that are left.
    """
    whole = [first, *tokens]
    ends = [min(end, len(tokens)) for end in range(width, len(tokens) + width, width)]
    starts = [0, *ends]
    return [
        Row(whole[max(0, end - width) : end + 1], end - start)
        for start, end in zip(starts, ends, strict=False)
    ]


def score_rows(model: DecoderOnly, rows: Sequence[Row], *, batch_tokens: int = BATCH_TOKENS) -> list[Score]:
    """Return the score of each row, in the order given; rows of like length are computed together."""
    found: dict[int, Score] = {}
    for batch in _batches([len(row.tokens) - 1 for row in rows], batch_tokens):
        found |= zip(batch, _score_batch(model, [rows[index] for index in batch]), strict=True)
    return [found[index] for index in range(len(rows))]


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of the rows of each batch: the longest first, as many as there is room for."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _score_batch(model: DecoderOnly, rows: Sequence[Row]) -> list[Score]:
    """Score rows that are padded on the right to the longest."""
    device, width = next(model.parameters()).device, max(len(row.tokens) - 1 for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for index, row in enumerate(rows):
        given = torch.tensor(row.tokens[:-1], device=device)
        tokens[index, : len(given)], mask[index, : len(given)] = given, True
    with evaluating(model):
        logits = model(tokens, None if mask.all() else mask)
        return [_score_row(logits[index], row) for index, row in enumerate(rows)]


def _score_row(logits: Tensor, row: Row) -> Score:
    """Score one row by its logits."""
    end = len(row.tokens) - 1
    scored = logits[end - row.n_scored : end]
    wanted = torch.tensor(row.tokens[-row.n_scored :], device=logits.device)
    wide = scored.to(torch.promote_types(scored.dtype, torch.float32))
    chosen = wide.log_softmax(-1).gather(-1, wanted[:, None])
    greedy = bool((scored.argmax(-1) == wanted).all())
    return Score(float(chosen.double().sum()), greedy, row.n_scored)
