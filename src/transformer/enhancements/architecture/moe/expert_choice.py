"""Expert choice: experts choose tokens, and not tokens experts (Zhou et al. 2022, arXiv 2202.09368 §3.2).

    S = softmax(x W) over experts;   expert i takes its C best tokens of the sequence by S_·i;
    y_t = Σ_{i that took t} S_ti E_i(x_t),        C = ⌈T · factor / x⌉

Every expert has equally much to do, so no loss is needed; a token may get any number of experts, or none. Equal scores
go to the earlier token. Unlike in the paper the tokens are those of one sequence and not of the batch, so that no row
depends on those beside it.

An expert compares a token with later ones. In a causal model that tells a token of its future, which nothing tells it
when text is generated, so such a model is refused. Cost a token: that of `factor` experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ....base.sockets import Context, FeedForwardConfig, Layer
from ...feed_forward.glu import GatedFeedForwardConfig
from .capacity import ROUNDING
from .dispatch import Slots, grouped_dispatch
from .experts import Experts
from .routing import RouterProjection


@dataclass(frozen=True)
class Picks:
    """The tokens that each expert takes, the best first, their gates, and whether they count."""

    tokens: Int[Tensor, "b c x"]
    gates: Float[Tensor, "b c x"]
    kept: Bool[Tensor, "b c x"]

    def slots(self, length: int) -> Slots:
        """Every pick, with tokens numbered over the whole batch of rows of this length."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)[:, None, None] * length
        experts = torch.arange(self.tokens.shape[2], device=self.tokens.device).expand_as(self.tokens)
        return Slots(
            (rows + self.tokens).flatten(), experts.flatten(), self.gates.flatten(), self.kept.flatten()
        )


class ExpertChoiceRouter(nn.Module):
    """Each expert's best tokens of each row."""

    def __init__(self, d_model: int, n_experts: int, factor: float) -> None:
        super().__init__()
        self.proj = RouterProjection(d_model, n_experts, bias=False)
        self.share = factor / n_experts

    def forward(self, x: Float[Tensor, "b t d"], context: Context) -> Picks:
        """Let the experts choose among the real tokens."""
        scores = torch.softmax(self.proj(x), dim=-1)
        real = context.layout.real
        real = torch.ones_like(scores[..., 0], dtype=torch.bool) if real is None else real
        order = scores.masked_fill(~real[..., None], -1).sort(dim=1, descending=True, stable=True).indices
        most = min(x.shape[1], ceil(x.shape[1] * self.share - ROUNDING))
        tokens = order[:, :most]
        room = torch.ceil(real.sum(1).double() * self.share - ROUNDING)[:, None, None]
        place = torch.arange(most, device=x.device)[:, None].expand_as(tokens)
        kept = (place < room) & real[..., None].expand_as(scores).gather(1, tokens)
        return Picks(tokens, scores.gather(1, tokens), kept)


class ExpertChoice(Layer):
    """Networks that each take the tokens they score best."""

    def __init__(self, router: ExpertChoiceRouter, experts: Experts) -> None:
        super().__init__()
        self.router, self.experts = router, experts

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Let each expert transform its tokens."""
        refuse_causal(context, "expert_choice", "experts pick among all tokens of a sequence")
        dispatch = context.execution.dispatch or grouped_dispatch
        return dispatch(self.experts, x, self.router(x, context).slots(x.shape[1]))

    def idle_weights(self) -> int:
        """How many of the weights a token does not use, on average."""
        share = max(0.0, 1 - self.router.share)
        return round(share * sum(parameter.numel() for parameter in self.experts.parameters()))


def refuse_causal(context: Context, kind: str, reason: str) -> None:
    """Refuse a causal model, in which a token must not depend on later ones."""
    if context.mask.causal:
        raise ValueError(
            f"{kind} cannot stand in a causal model: {reason}, so a token's output would depend on later tokens; "
            "use mixture_of_experts there"
        )


@dataclass(frozen=True)
class ExpertChoiceConfig(FeedForwardConfig):
    """A feed-forward part of networks that choose their tokens; for encoders only.

    capacity_factor: how many experts a token gets on average.
    """

    kind: ClassVar[str] = "expert_choice"
    both_ways_only: ClassVar[bool] = True
    n_experts: Annotated[int, Ge(1)] = 8
    experts: FeedForwardConfig = GatedFeedForwardConfig()
    capacity_factor: Annotated[float, Gt(0)] = 2.0

    def build(self, d_model: int) -> ExpertChoice:
        router = ExpertChoiceRouter(d_model, self.n_experts, self.capacity_factor)
        return ExpertChoice(router, Experts(d_model, self.n_experts, self.experts))
