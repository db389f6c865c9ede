"""Losses that make experts share the work; each is weighted and added to the objective by the context's collector.

    balance            α · x · Σ_i f_i P_i                         arXiv 2101.03961 eq. 4 to 6 (Switch)
    sequence balance   the same for each sequence, then the mean   arXiv 2412.19437 eq. 17 to 20 (DeepSeek-V3)
    router z-loss      α · mean of (log Σ_i exp z_i)²              arXiv 2202.08906 eq. 5 (ST-MoE)

f_i is the share of all choices that expert i was given, over the real tokens of the batch (or of one sequence), whether
or not there was room, and has no gradient; P_i is the mean over tokens of the share of the score, and has. Both add up
to 1, so at perfect balance both balance losses are α, for any k (k·α in `transformers`, where the f_i add up to k).
α = 0.01 in Switch, 10⁻³ for the z-loss in ST-MoE, and "extremely small" in DeepSeek-V3.

A step of several micro-batches has the mean of their losses, weighted by their targets. That is not the loss of one
large batch, since a product of means is not the mean of products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from ....base.sockets import Config
from .routing import Routing

RouterLoss = Callable[[Routing], Tensor]


@dataclass(frozen=True)
class RouterLossConfig(Config):
    """A loss of a router's decision; `weight` is its α."""

    weight: Annotated[float, Ge(0)] = 0.01

    def build(self) -> RouterLoss:
        raise NotImplementedError


def balance(routing: Routing, weight: float) -> Float[Tensor, ""]:
    """α · x · Σ f P over all real tokens."""
    chosen, scores = _counted(routing)
    f, p = _shares(chosen.sum((0, 1))), _shares(scores.sum((0, 1)))
    return weight * len(f) * (f * p).sum()


def sequence_balance(routing: Routing, weight: float) -> Float[Tensor, ""]:
    """α · x · Σ f P of each sequence, and the mean over those that have real tokens."""
    chosen, scores = _counted(routing)
    f, p = _shares(chosen.sum(1)), _shares(scores.sum(1))
    rows = routing.real.any(1).sum().clamp(min=1)
    return weight * f.shape[-1] * (f * p).sum() / rows


def router_z(routing: Routing, weight: float) -> Float[Tensor, ""]:
    """α · mean of the squared log of the sum of exponentials."""
    size = torch.logsumexp(routing.logits, dim=-1).square() * routing.real
    return weight * size.sum() / routing.real.sum().clamp(min=1)


def _counted(routing: Routing) -> tuple[Float[Tensor, "b t x"], Float[Tensor, "b t x"]]:
    """Who chose whom, and the scores as shares, zero at padding."""
    return routing.chosen().to(routing.scores.dtype), routing.scores * routing.real[..., None]


def _shares(numbers: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Parts of 1 along the last axis; zeros if there is nothing."""
    return numbers / numbers.sum(-1, keepdim=True).clamp(min=torch.finfo(numbers.dtype).tiny)


@dataclass(frozen=True)
class BalanceLossConfig(RouterLossConfig):
    """Switch's loss: experts that get more tokens are made less likely."""

    kind: ClassVar[str] = "balance_loss"

    def build(self) -> RouterLoss:
        return partial(balance, weight=self.weight)


@dataclass(frozen=True)
class SequenceBalanceLossConfig(RouterLossConfig):
    """DeepSeek-V3's loss: balance within each sequence."""

    kind: ClassVar[str] = "sequence_balance_loss"
    weight: Annotated[float, Ge(0)] = 0.0001

    def build(self) -> RouterLoss:
        return partial(sequence_balance, weight=self.weight)


@dataclass(frozen=True)
class RouterZLossConfig(RouterLossConfig):
    """ST-MoE's loss: keeps the logits small."""

    kind: ClassVar[str] = "router_z_loss"
    weight: Annotated[float, Ge(0)] = 0.001

    def build(self) -> RouterLoss:
        return partial(router_z, weight=self.weight)
