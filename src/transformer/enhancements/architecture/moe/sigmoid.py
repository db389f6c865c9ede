"""Routing by sigmoid scores with a bias that decides who is chosen and not how much it counts (DeepSeek-V3).

    s = σ(W x);   the k best of s + b;   g_i = s_i / Σ_{j chosen} s_j · scale            arXiv 2412.19437 eq. 12 to 16
    after each optimizer step:   b_i ← b_i + u · sign(mean load − load_i)                arXiv 2408.15664 alg. 1

The bias is moved by how many tokens each expert was chosen by in that step, and not by a gradient, so no loss pulls
the router away from what predicts well. With groups, a group is worth the sum of its two best s + b.

The loads are counted while training, over all micro-batches of a step, and once each where checkpointing runs a block
twice; the training step calls `begin_step` and `end_step`. The bias is saved with the weights, and the loads are zero
between steps. A step that is skipped for bad numbers leaves the bias alone. Cost: d·x multiplications a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor, nn

from ....base.sockets import Context
from .routing import Router, RouterConfig, Routing, best


class SelectionBias(nn.Module):
    """A number added to each expert's score for the choice, higher for experts that had too few tokens."""

    def __init__(self, n_experts: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("bias", torch.zeros(n_experts))
        self.register_buffer("loads", torch.zeros(n_experts, dtype=torch.long), persistent=False)
        self.bias: Float[Tensor, " x"]
        self.loads: Int[Tensor, " x"]

    def forward(self, scores: Float[Tensor, "b t x"]) -> Float[Tensor, "b t x"]:
        """The scores by which experts are chosen."""
        return scores + self.bias

    def count(self, routing: Routing, context: Context) -> None:
        """Add up who was chosen; in evaluation, and the second time that checkpointing runs a block, do not."""
        if self.training and context.auxiliary.first(self):
            self.loads += routing.chosen().sum((0, 1))

    def begin_step(self) -> None:
        """Forget the loads of the last step."""
        self.loads.zero_()

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the bias against the loads of this step."""
        loads = self.loads.to(self.bias.dtype)
        self.bias += self.rate * torch.sign(loads.mean() - loads)


class SigmoidTopK(Router):
    """The best of sigmoid scores and a bias."""

    def __init__(self, d_model: int, n_experts: int, config: SigmoidTopKConfig) -> None:
        super().__init__(d_model, n_experts, config, group_votes=2)
        self.selection = SelectionBias(n_experts, config.bias_rate)

    def forward(self, x: Float[Tensor, "b t d"], context: Context) -> Routing:
        """Decide about every token by itself, and count."""
        routing = super().forward(x, context)
        self.selection.count(routing, context)
        return routing

    def choose(self, logits: Float[Tensor, "b t x"]) -> tuple[Tensor, Tensor, Tensor]:
        scores = torch.sigmoid(logits)
        experts = best(self.limit(self.selection(scores)), self.top_k)
        return experts, self.weigh(scores.gather(-1, experts)), scores / scores.sum(-1, keepdim=True)

    def weigh(self, gates: Float[Tensor, "b t _"]) -> Float[Tensor, "b t _"]:
        """The gates, of the scores of the chosen."""
        return gates


class RenormalizedSigmoidTopK(SigmoidTopK):
    """The same with gates that add up to 1."""

    def weigh(self, gates: Float[Tensor, "b t _"]) -> Float[Tensor, "b t _"]:
        """The gates, of the scores of the chosen."""
        return gates / (gates.sum(-1, keepdim=True) + 1e-20)


@dataclass(frozen=True)
class SigmoidTopKConfig(RouterConfig):
    """Sigmoid scores, divided by the sum of the chosen ones if `renormalize`.

    bias_rate: how far the bias for the choice moves after each optimizer step; 0 leaves it where it is.
    """

    kind: ClassVar[str] = "sigmoid_top_k"
    renormalize: bool = True
    bias_rate: Annotated[float, Ge(0)] = 0.001

    def build(self, d_model: int, n_experts: int) -> Router:
        router = RenormalizedSigmoidTopK if self.renormalize else SigmoidTopK
        return router(d_model, n_experts, self)
