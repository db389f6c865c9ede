"""What a router decides, and what all routers share: logits in float32, a deterministic choice, groups.

A router gives each token a score for each expert, and the token goes to the k experts with the best ones. Equal scores
go to the expert with the lower number, on every device. Padding is routed too, and nowhere counted or kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ....base.sockets import Config, Context


@dataclass(frozen=True)
class Routing:
    """The decision of a router about every token, `_` being the k experts of a token, the best first.

    experts: their numbers. gates: how much each counts. kept: false at padding, and where an expert was full. real:
    false at padding. logits: of the router. scores: the same as shares, which add up to 1 for each token.
    """

    experts: Int[Tensor, "b t _"]
    gates: Float[Tensor, "b t _"]
    kept: Bool[Tensor, "b t _"]
    real: Bool[Tensor, "b t"]
    logits: Float[Tensor, "b t x"]
    scores: Float[Tensor, "b t x"]

    def chosen(self) -> Int[Tensor, "b t x"]:
        """1 at the experts that a real token chose, whether or not they had room for it; 0 elsewhere."""
        picked = torch.zeros_like(self.logits, dtype=torch.long).scatter(-1, self.experts, 1)
        return picked * self.real[..., None]


@dataclass(frozen=True)
class RouterConfig(Config):
    """A router as data.

    top_k: experts of a token. jitter: while training, what the router reads is multiplied by numbers between 1 − jitter
    and 1 + jitter (arXiv 2101.03961 §2.4). scale: multiplies the gates. n_groups, top_groups: experts stand in so many
    groups, and a token chooses among those of its best few (arXiv 2405.04434 §2.2.2).
    """

    top_k: Annotated[int, Ge(1)] = 2
    jitter: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = False
    scale: Annotated[float, Gt(0)] = 1.0
    n_groups: Annotated[int, Ge(1)] = 1
    top_groups: Annotated[int, Ge(1)] = 1

    def __post_init__(self) -> None:
        if self.top_groups > self.n_groups:
            raise ValueError(f"top_groups {self.top_groups} is more than n_groups {self.n_groups}; lower it")

    def check(self, n_experts: int) -> None:
        """Refuse a number of experts that cannot be chosen from."""
        if n_experts % self.n_groups:
            raise ValueError(
                f"n_experts {n_experts} cannot stand in n_groups {self.n_groups} equal groups; choose a divisor of it"
            )
        there = n_experts // self.n_groups * self.top_groups
        if self.top_k > there:
            raise ValueError(
                f"top_k {self.top_k} is more than the {there} experts that a token can choose from; lower top_k"
            )

    def build(self, d_model: int, n_experts: int) -> Router:
        raise NotImplementedError


class RouterProjection(nn.Linear):
    """The map from a token to its logits, in float32 or better under any precision (arXiv 2101.03961 §2.4)."""

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t x"]:
        """Map in full precision."""
        wide = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(wide), self.weight.to(wide), bias)


class Jitter(nn.Module):
    """Multiply by numbers drawn evenly from 1 − ε to 1 + ε while training."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Shake every entry by itself."""
        if not self.training or self.epsilon == 0:
            return x
        return x * torch.empty_like(x).uniform_(1 - self.epsilon, 1 + self.epsilon)


class Router(nn.Module):
    """Logits, and who is chosen by them; each kind of router says how (`choose`)."""

    def __init__(self, d_model: int, n_experts: int, config: RouterConfig, group_votes: int = 1) -> None:
        super().__init__()
        config.check(n_experts)
        self.top_k, self.scale = config.top_k, config.scale
        self.proj = RouterProjection(d_model, n_experts, bias=config.bias)
        self.jitter = Jitter(config.jitter)
        self.limit: Callable[[Tensor], Tensor] = _everywhere
        if config.top_groups < config.n_groups:
            votes = min(group_votes, n_experts // config.n_groups)
            self.limit = partial(
                best_groups, n_groups=config.n_groups, top_groups=config.top_groups, votes=votes
            )

    def forward(self, x: Float[Tensor, "b t d"], context: Context) -> Routing:
        """Decide about every token by itself."""
        logits = self.proj(self.jitter(x))
        experts, gates, scores = self.choose(logits)
        real = context.layout.real
        real = torch.ones_like(experts[..., 0], dtype=torch.bool) if real is None else real
        kept = real[..., None].expand_as(experts)
        return Routing(experts, gates * self.scale, kept, real, logits, scores)

    def choose(self, logits: Float[Tensor, "b t x"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers of the experts, the gates, and the scores as shares."""
        raise NotImplementedError


def best(scores: Float[Tensor, "... x"], k: int) -> Int[Tensor, "... _"]:
    """The numbers of the k best, the best first, and of equal ones that with the lower number.

    One after the other, since k is small: sorting all of them takes several times as long, and `topk` leaves the order
    of equal ones open.
    """
    left, chosen = scores.detach(), []
    for _ in range(k):
        chosen.append(left.argmax(dim=-1, keepdim=True))  # the first of equal ones
        left = left.scatter(-1, chosen[-1], -torch.inf)
    return torch.cat(chosen, dim=-1)


def best_groups(
    scores: Float[Tensor, "... x"], n_groups: int, top_groups: int, votes: int
) -> Float[Tensor, "... x"]:
    """−∞ outside the best groups; a group is worth the sum of the best `votes` of its scores."""
    grouped = rearrange(scores, "... (g x) -> ... g x", g=n_groups)
    worth = grouped.sort(dim=-1, descending=True).values[..., :votes].sum(-1)
    open_ = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, best(worth, top_groups), True)
    return rearrange(grouped.masked_fill(~open_[..., None], -torch.inf), "... g x -> ... (g x)")


def _everywhere(scores: Float[Tensor, "... x"]) -> Float[Tensor, "... x"]:
    return scores
