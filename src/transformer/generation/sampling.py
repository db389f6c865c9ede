"""Choosing the next token: penalty, temperature, top-k, top-p, min-p, and a draw that is a function of its place.

Each filter is a function logits → logits that sets to −∞ what must not be drawn. A filter keeps all tokens of
equal probability or none, so what it keeps does not depend on their order in the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..utils.rng import derive_seed


def top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """Keep the k most probable tokens, and ties with the last of them (arXiv 1805.04833 §5.4)."""
    least = logits.topk(min(k, logits.shape[1]), dim=1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Keep the fewest most probable tokens that together reach probability p, and ties with the last of them.

    Nucleus sampling, arXiv 1904.09751 §3.1; 0 < p ≤ 1.
    """
    if p == 1:
        return logits  # a sum rounded to 1 early would cut off the tail
    ordered = logits.sort(dim=1, descending=True).values
    probability = ordered.softmax(1, dtype=torch.float64)
    before = probability.cumsum(1) - probability
    least = ordered.masked_fill(before >= p, torch.inf).amin(1, keepdim=True)
    return logits.masked_fill(logits < least, -torch.inf)


def min_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Keep the tokens at least p times as probable as the most probable one (arXiv 2407.01082 §3)."""
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(1, keepdim=True) + math.log(p), -torch.inf)


def penalize(logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"], penalty: float) -> Float[Tensor, "b v"]:
    """Make the tokens that were `seen` less probable (CTRL, arXiv 1909.05858 §4.1); 1 changes nothing.

    The paper divides their logits by the penalty. That makes a negative logit greater, so here, as everywhere today,
    a negative one is multiplied instead.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def draw(logits: Float[Tensor, "b v"], seed: int, step: int, rows: list[int]) -> Int[Tensor, " b"]:
    """Draw a token for each row from softmax(logits), by inversion of its distribution function.

    The one random number that takes is `uniform(seed, step, row)`, so the token of a row depends on its
    logits, its number and the step, not on the rest of the batch. ValueError where the logits are not finite.
    """
    chances = (logits.double() - logits.double().amax(1, keepdim=True)).exp()
    mass = chances.cumsum(1)
    if not mass[:, -1].isfinite().all():
        raise ValueError("the model's logits are not finite, so no token can be drawn; check its weights")
    points = torch.tensor([uniform(seed, step, row) for row in rows], dtype=torch.float64)
    return torch.searchsorted(mass, points.to(mass.device)[:, None] * mass[:, -1:], right=True)[:, 0]


def uniform(seed: int, step: int, row: int) -> float:
    """Return a number from [0, 1) that is a function of the arguments.

    It has 52 bits: so many that their product with a sum of probabilities never rounds up to that sum.
    """
    return (derive_seed(seed, "sample", step, row) >> 11) / 2**52


@dataclass(frozen=True)
class Sampling:
    """How to choose each next token. The penalty comes first, then the filters in the order of the fields.

    temperature: divides the logits; 0 takes the most probable token (greedy). top_k, top_p, min_p: see the
    functions; None leaves a filter out. seed: the same seed, the same tokens. repetition_penalty: of the tokens that
    the row has, its prompt included; 1 is none.
    """

    temperature: Annotated[float, Ge(0)] = 1.0
    top_k: Annotated[int, Ge(1)] | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    min_p: Annotated[float, Ge(0), Le(1)] | None = None
    seed: int = 0
    repetition_penalty: Annotated[float, Gt(0)] = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}; 1 is neutral")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be more than 0 and at most 1 (every token), got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be between 0 (every token) and 1, got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0, got {self.repetition_penalty}; 1 is none")

    def penalized(
        self, logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"] | None
    ) -> Float[Tensor, "b v"]:
        """Return the logits after the penalty on the tokens that were `seen`; None: there is none."""
        return logits if seen is None else penalize(logits, seen, self.repetition_penalty)

    def distribution(self, logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Return the probabilities that a token is chosen with, in float64; all of it on one token where greedy."""
        if self.temperature == 0:
            best = logits.argmax(1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float64).scatter_(1, best, 1.0)
        return self.filter(logits).softmax(1)

    def filter(self, logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Return the logits of the distribution to draw from; `temperature` must not be 0."""
        logits = logits.double() / self.temperature
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return logits

    def choose(
        self,
        logits: Float[Tensor, "b v"],
        step: int,
        rows: list[int],
        seen: Bool[Tensor, "b v"] | None = None,
    ) -> Int[Tensor, " b"]:
        """Return the next token of each of the batch's `rows`; a tie of greedy goes to the lower id."""
        logits = self.penalized(logits, seen)
        if self.temperature == 0:
            return logits.argmax(1)
        return draw(self.filter(logits), self.seed, step, rows)
