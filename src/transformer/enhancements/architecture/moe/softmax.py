"""Routing by a softmax over experts, taken before the choice or after it.

    before   p = softmax(W x),  the k best of p;   g_i = p_i                   Switch (k = 1), GShard
             with `renormalize`                    g_i = p_i / Σ_{j chosen} p_j
    after    the k best of W x;                    g = softmax of those k      Mixtral

Shazeer et al. 2017 (arXiv 1701.06538 eq. 3) have the softmax after, as Mixtral (arXiv 2401.04088 §2.1); Switch
(arXiv 2101.03961 eq. 1 and 2) before, with k = 1, where renormalizing would make every gate 1 and leave the router
without a gradient. GShard (arXiv 2006.16668 §2.2) renormalizes its two gates; DeepSeek-V2, OLMoE and Qwen1.5-MoE do
not.
Renormalized before and after are the same function; not renormalized is another model, whose gates add up to less
than 1. Cost: d·x multiplications a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .routing import Router, RouterConfig, best


class SoftmaxBeforeTopK(Router):
    """The best of the probabilities, which are the gates."""

    def choose(self, logits: Float[Tensor, "b t x"]) -> tuple[Tensor, Tensor, Tensor]:
        scores = torch.softmax(logits, dim=-1)
        experts = best(self.limit(scores), self.top_k)
        return experts, self.weigh(scores.gather(-1, experts)), scores

    def weigh(self, gates: Float[Tensor, "b t _"]) -> Float[Tensor, "b t _"]:
        """The gates, of the probabilities of the chosen."""
        return gates


class RenormalizedSoftmaxBeforeTopK(SoftmaxBeforeTopK):
    """The best of the probabilities, divided by their sum."""

    def weigh(self, gates: Float[Tensor, "b t _"]) -> Float[Tensor, "b t _"]:
        """The gates, of the probabilities of the chosen."""
        return gates / gates.sum(-1, keepdim=True)


class SoftmaxAfterTopK(Router):
    """The softmax of the best logits."""

    def choose(self, logits: Float[Tensor, "b t x"]) -> tuple[Tensor, Tensor, Tensor]:
        experts = best(self.limit(logits), self.top_k)
        return experts, torch.softmax(logits.gather(-1, experts), dim=-1), torch.softmax(logits, dim=-1)


@dataclass(frozen=True)
class SoftmaxBeforeTopKConfig(RouterConfig):
    """Probabilities of all experts, of which the best are the gates; divided by their sum if `renormalize`."""

    kind: ClassVar[str] = "softmax_before_top_k"
    renormalize: bool = False

    def build(self, d_model: int, n_experts: int) -> Router:
        router = RenormalizedSoftmaxBeforeTopK if self.renormalize else SoftmaxBeforeTopK
        return router(d_model, n_experts, self)


@dataclass(frozen=True)
class SoftmaxAfterTopKConfig(RouterConfig):
    """Probabilities among the experts with the best logits."""

    kind: ClassVar[str] = "softmax_after_top_k"

    def build(self, d_model: int, n_experts: int) -> Router:
        return SoftmaxAfterTopK(d_model, n_experts, self)
