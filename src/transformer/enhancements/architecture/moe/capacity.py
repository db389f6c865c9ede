"""Expert capacity: an expert takes at most so many tokens of a sequence, and drops the rest (Switch, GShard).

    C = ⌈k · T / x · factor⌉              arXiv 2101.03961 eq. 3; T real tokens in the row, k choices each, x experts

First come, first served: an expert takes the tokens that chose it in the order in which they stand in their row, so a
later token never takes an earlier one's place. (A token's k choices are k different experts, so their order does not
matter.) What is dropped contributes nothing at all: no output, no gradient, and the other gates of the token stay as
they were. A token that every expert drops passes by on the residual connection alone.

Unlike in the papers, the group is one row (of packed documents too) and not a batch, so that no row depends on those
beside it; GShard lets all
first choices go before all second ones, which in a causal model would tell a token of later ones. Tokens are dropped in
training only: in evaluation experts take all, where Switch raises the factor to 2. C grows with the row, so in training
a shorter row may drop a token that a longer one keeps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from .routing import Routing

ROUNDING = 1e-9
"""Below this a capacity is a whole number that rounding has lifted."""


class Capacity(nn.Module):
    """Drop what is over capacity while training."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, routing: Routing) -> Routing:
        """The decision with what is dropped marked so."""
        return within_capacity(routing, self.factor) if self.training else routing


def within_capacity(routing: Routing, factor: float) -> Routing:
    """Keep each expert's first tokens of each row, up to its capacity."""
    (_, _, k), x = routing.experts.shape, routing.logits.shape[-1]
    choices = F.one_hot(routing.experts, x) * routing.real[..., None, None]
    choices = rearrange(choices, "b t k x -> b (t k) x")
    place = ((choices.cumsum(1) - choices) * choices).sum(-1)
    capacity = torch.ceil(routing.real.sum(1).double() * (k * factor / x) - ROUNDING)
    there = (place < capacity[:, None]).view_as(routing.kept)
    return replace(routing, kept=routing.kept & there)
