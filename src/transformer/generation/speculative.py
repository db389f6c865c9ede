"""Speculative decoding: several tokens for one call of the model (arXiv 2211.17192 §2, arXiv 2302.01318 §2).

Something cheap guesses γ tokens, each drawn from a distribution q of its own. The model reads all of them in one call,
which gives the distribution p that it would itself have drawn each from, and each is kept

    with probability min(1, p(x) / q(x));     the first that is not, is drawn anew from norm(max(0, p − q)).

If all are kept, one more token is drawn from the last p. What comes out is distributed exactly as what the model draws
by itself (2211.17192, appendix A.1), whatever q is: a bad guess costs time, nothing else. Greedy decoding is the case
of p with all its weight on one token. Temperature, filters and penalty apply to p and q before all this.

Guesses come from a smaller model with the same vocabulary (`DraftModel`), or from the text itself (`PromptLookup`: what
followed the last few tokens when they stood there before, as in arXiv 2304.04487; q has all its weight on that token).

The cache is rolled back over tokens that were not kept, so the model's state must be able to (`Storage.rollback`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.cache import Storage
from ..utils.rng import derive_seed
from .prompts import as_tokens, check_prompts
from .protocol import Decoder, evaluating
from .sampling import Sampling, draw, uniform

Distribution = Float[Tensor, " v"]


class Guess(NamedTuple):
    """A token, and the distribution that it was drawn from."""

    token: int
    chances: Distribution


@dataclass
class Tally:
    """What became of the guesses: how many there were, how many were kept, and how often the model was called."""

    guessed: int = 0
    kept: int = 0
    calls: int = 0

    @property
    def rate(self) -> float:
        """The share of guesses that were kept."""
        return self.kept / self.guessed if self.guessed else 0.0


@runtime_checkable
class Drafter(Protocol):
    """Guesses the next tokens. tally: of all texts so far."""

    tally: Tally
    n_tokens: int

    def begin(self, vocab_size: int, sampling: Sampling, row: int) -> Any:
        """Return a function from the tokens so far, and how many are wanted, to a list of guesses."""


class PromptLookup:
    """Guesses that what followed the last tokens before, follows them again.

    The longest of the last `longest` tokens, down to one, that stand earlier in the text; of several places the
    latest. It costs no call of a model, and pays where a text repeats its prompt: summaries, code, corrections.
    """

    def __init__(self, n_tokens: int = 8, longest: int = 3) -> None:
        _check(n_tokens)
        if longest < 1:
            raise ValueError(f"longest must be at least 1 token to look up, got {longest}")
        self.n_tokens, self.longest, self.tally = n_tokens, longest, Tally()

    def begin(self, vocab_size: int, sampling: Sampling, row: int) -> Any:
        """Return the function that guesses."""

        def guess(tokens: Sequence[int], n: int) -> list[Guess]:
            return [Guess(token, _certain(token, vocab_size)) for token in self.follow(tokens)[:n]]

        return guess

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that followed the last few, where those stood before."""
        for size in range(min(self.longest, len(tokens) - 1), 0, -1):
            last = list(tokens[-size:])
            for place in range(len(tokens) - size - 1, -1, -1):
                if list(tokens[place : place + size]) == last:
                    return list(tokens[place + size : place + size + self.n_tokens])
        return []


class DraftModel:
    """Guesses with a smaller model of the same vocabulary."""

    def __init__(self, model: Decoder[Any], n_tokens: int = 4) -> None:
        _check(n_tokens)
        self.model, self.n_tokens, self.tally = model, n_tokens, Tally()

    def begin(self, vocab_size: int, sampling: Sampling, row: int) -> Any:
        """Return the function that guesses; it keeps the draft's state between calls."""
        reader = Reader(self.model, self.n_tokens + 1)
        limit = self.model.stack.position.max_seq_len

        def guess(tokens: Sequence[int], n: int) -> list[Guess]:
            text, guesses = list(tokens), []
            for _ in range(n if limit is None else min(n, limit - len(text) + 1)):
                logits = reader.read(text)[-1:]
                if logits.shape[1] != vocab_size:
                    raise ValueError(
                        f"the draft has a vocabulary of {logits.shape[1]} tokens and the model one of {vocab_size}; "
                        "a draft needs the model's own"
                    )
                chances = _chances(sampling, logits, text)
                token = _pick(chances, sampling.seed, "draft", len(text), row)
                guesses.append(Guess(token, chances))
                text.append(token)
            return guesses

        return guess


class NoDraft:
    """Guesses nothing: each call of the model gives one token."""

    def __init__(self) -> None:
        self.n_tokens, self.tally = 0, Tally()

    def begin(self, vocab_size: int, sampling: Sampling, row: int) -> Any:
        """Return the function that guesses."""
        return lambda tokens, n: []


class Reader:
    """A model and its state for one text, which may change at its end from call to call.

    Up to `rollback` tokens are taken back; for more, or where the model cannot and it is not `needed`, the text is
    read again from the beginning.
    """

    def __init__(self, model: Decoder[Any], rollback: int, needed: bool = True) -> None:
        self.model, self.storage = model, Storage(rollback=rollback)
        try:
            self.state = model.initial_state(self.storage)
        except ValueError:
            if needed:
                raise
            self.storage = Storage()
            self.state = model.initial_state(self.storage)
        self.device = next(parameter.device for parameter in model.parameters())
        self.known: list[int] = []

    def shared(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, but for the last, need not be read again."""
        pairs = zip(self.known, tokens[:-1], strict=False)
        same = next(
            (i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.known), len(tokens) - 1)
        )
        return same if len(self.known) - same <= self.storage.rollback else 0

    def read(self, tokens: Sequence[int]) -> Float[Tensor, "_ v"]:
        """Return the logits after those of the tokens that were not read yet, and at least after the last."""
        same, known = self.shared(tokens), len(self.known)
        self.known = []  # if this is interrupted, the state is of no use any more
        with evaluating(self.model):
            if not same:
                self.state = self.model.initial_state(self.storage)
            elif same < known:
                self.state.truncate(torch.tensor([[same]], device=self.device))
            new = torch.tensor([list(tokens[same:])], device=self.device)
            logits = self.model.decode(new, self.state)[0]
            self.known = list(tokens)
            return logits


def speculate(
    model: Decoder[Any],
    drafter: Drafter,
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stop: int | Collection[int] | None = None,
    first_row: int = 0,
) -> Iterator[int]:
    """Yield the tokens that continue one prompt, `stop` included, distributed as those of `stream`.

    At temperature 0 they are those of `stream`. `drafter.tally` counts the guesses. A token depends on the prompt,
    `first_row` and the seed; on the drafter only by which of equally distributed tokens comes out.

    ValueError for more prompts than one, a draft with another vocabulary, a model whose state cannot be rolled back,
    and what `generate` refuses.
    """
    if len(tokens) != 1:
        raise ValueError(
            f"speculative decoding continues one prompt at a time, got {len(tokens)}; call it for each"
        )
    check_prompts(tokens, max_new_tokens, None, model.stack.position.max_seq_len)
    reader = Reader(model, drafter.n_tokens + 1)
    stops = frozenset(as_tokens(stop, tokens.device).tolist())
    return continue_read(reader, drafter, tokens[0].tolist(), max_new_tokens, sampling, stops, first_row)


def continue_read(
    reader: Reader,
    drafter: Drafter,
    tokens: Sequence[int],
    room: int,
    sampling: Sampling,
    stops: frozenset[int],
    row: int,
) -> Iterator[int]:
    """Yield the tokens that continue a text, of which the reader may know the beginning."""
    text = list(tokens)
    end, guess = len(text) + room, None
    guesses: list[Guess]
    while len(text) < end:
        # nothing is known of the vocabulary before the first call, so that is made without guesses
        guesses = [] if guess is None else guess(text, min(drafter.n_tokens, end - len(text) - 1))
        logits = reader.read([*text, *(token for token, _ in guesses)])[-len(guesses) - 1 :]
        guess = guess or drafter.begin(logits.shape[1], sampling, row)
        new = _judge(logits, guesses, text, sampling, row)
        drafter.tally.calls += 1
        drafter.tally.guessed += len(guesses)
        drafter.tally.kept += len(new) - 1
        for token in new:
            text.append(token)
            yield token
            if token in stops:
                return


def _judge(
    logits: Float[Tensor, "_ v"], guesses: Sequence[Guess], text: Sequence[int], sampling: Sampling, row: int
) -> list[int]:
    """Return the guesses that are kept, and the token after them."""
    new: list[int] = []
    for i, (token, q) in enumerate(guesses):
        p = _chances(sampling, logits[i : i + 1], [*text, *new])
        place = len(text) + i
        keep, rest = verdict(p, q.to(p.device), token)
        if uniform(derive_seed(sampling.seed, "accept"), place, row) >= keep:
            return [*new, _pick(rest, sampling.seed, "sample", place, row)]
        new.append(token)
    p = _chances(sampling, logits[-1:], [*text, *new])
    return [*new, _pick(p, sampling.seed, "sample", len(text) + len(new), row)]


def verdict(p: Distribution, q: Distribution, token: int) -> tuple[float, Distribution]:
    """Return how probably a token that was drawn from q is kept, and what one is drawn from instead, up to a factor."""
    return min(1.0, float(p[token] / q[token])), (p - q).clamp(min=0)


def _chances(sampling: Sampling, logits: Float[Tensor, "1 v"], text: Sequence[int]) -> Distribution:
    """The distribution of the token after `text`."""
    seen = None
    if sampling.repetition_penalty != 1:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, list(text)] = True
    return sampling.distribution(sampling.penalized(logits, seen))[0]


def _pick(chances: Distribution, seed: int, kind: str, place: int, row: int) -> int:
    """Draw a token, by a number of its own for each place and purpose."""
    return int(draw(chances.log()[None], derive_seed(seed, kind), place, [row])[0])


def _certain(token: int, vocab_size: int) -> Distribution:
    chances = torch.zeros(vocab_size, dtype=torch.float64)
    chances[token] = 1
    return chances


def _check(n_tokens: int) -> None:
    if n_tokens < 1:
        raise ValueError(
            f"n_tokens must be at least 1 guess, got {n_tokens}; leave the draft out to guess nothing"
        )
