"""Soft mixture of experts: experts work on averages of tokens (Puigcerver et al. 2023, arXiv 2308.00951 §2.1).

    D = softmax of x Φ over the tokens,   C = softmax of x Φ over the slots;     c slots for each of x experts
    slots = Dᵀ x,   made = E_i(slots of expert i),   y = C made                  equations 1 to 3

Nothing is chosen, dropped or out of balance, and everything has a gradient. The paper's §2.3 also normalizes x and Φ
for wide models, which we leave out. Padding enters no average.

A slot is an average over all tokens of the sequence, later ones included, so a causal model is refused. Cost of a
sequence: c · x tokens through an expert, and 3 · t · c · x · d for the averages, however long it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ....base.sockets import Context, FeedForwardConfig, Layer
from ...feed_forward.glu import GatedFeedForwardConfig
from .dispatch import equal_groups
from .expert_choice import refuse_causal
from .experts import Experts
from .routing import RouterProjection


@dataclass(frozen=True)
class Mixing:
    """How much of each token is in each slot, and how much of each slot's output in each token's."""

    dispatch: Float[Tensor, "b t x c"]
    combine: Float[Tensor, "b t x c"]


class SoftRouter(nn.Module):
    """Weights of tokens in slots and of slots in tokens, from one map."""

    def __init__(self, d_model: int, n_experts: int, n_slots: int) -> None:
        super().__init__()
        self.proj = RouterProjection(d_model, n_experts * n_slots, bias=False)
        self.n_experts = n_experts

    def forward(self, x: Float[Tensor, "b t d"], context: Context) -> Mixing:
        """A row without real tokens has nothing in its slots."""
        logits, real = self.proj(x), context.layout.real
        combine = torch.softmax(logits, dim=2)
        if real is not None:
            there = real[..., None]
            logits = logits.masked_fill(~there & there.any(1, keepdim=True), -torch.inf)
        dispatch = torch.softmax(logits, dim=1)
        dispatch = dispatch if real is None else dispatch * real[..., None]
        return Mixing(*(rearrange(y, "b t (x c) -> b t x c", x=self.n_experts) for y in (dispatch, combine)))


class SoftMixtureOfExperts(Layer):
    """Networks that transform averages of tokens."""

    def __init__(self, router: SoftRouter, experts: Experts) -> None:
        super().__init__()
        self.router, self.experts = router, experts

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Average tokens into slots, transform those, and average them back."""
        refuse_causal(
            context, "soft_mixture_of_experts", "each slot is an average of all tokens of a sequence"
        )
        mixing = self.router(x, context)
        slots = torch.einsum("btxc,btd->xbcd", mixing.dispatch.to(x.dtype), x)
        made = self.experts(rearrange(slots, "x b c d -> x (b c) d"), equal_groups)
        made = rearrange(made, "x (b c) d -> x b c d", b=len(x))
        return torch.einsum("btxc,xbcd->btd", mixing.combine.to(made.dtype), made)


@dataclass(frozen=True)
class SoftMixtureOfExpertsConfig(FeedForwardConfig):
    """A feed-forward part of networks that share averages of tokens; for encoders only. n_slots: of each expert."""

    kind: ClassVar[str] = "soft_mixture_of_experts"
    both_ways_only: ClassVar[bool] = True
    n_experts: Annotated[int, Ge(1)] = 8
    experts: FeedForwardConfig = GatedFeedForwardConfig()
    n_slots: Annotated[int, Ge(1)] = 1

    def build(self, d_model: int) -> SoftMixtureOfExperts:
        experts = Experts(d_model, self.n_experts, self.experts)
        return SoftMixtureOfExperts(SoftRouter(d_model, self.n_experts, self.n_slots), experts)
