"""Mixture of depths: a block that only some tokens of a sequence go through (Raposo et al. 2024, arXiv 2404.02258).

A router gives each token a weight, and the k = ⌈C·t⌉ tokens of the greatest weights pass through the whole block,
attention and feed-forward network alike, among themselves; the others stay as they are (§3.4, equation 1):

    r_i = w · x_i
    y_i = x_i + r_i · (Block(X̃)_i − x_i)    if i is among the k greatest of r, else y_i = x_i

X̃ are the chosen tokens in their order, at the positions they have in the sequence. The weight stands on the output of
the block, what attention and feed-forward add together, so the router learns by gradient; the token itself is added
once. The paper gives every other block C = 1/8. A tie of weights goes to the earlier token.

Whether a token is among the k greatest depends on later tokens, so this rule leaks the future (§3.5). It is used in
training only. In eval mode each token is judged by itself, from one of the paper's two causal stand-ins, which are
taught to tell the choice that training makes:

    predictor   a small MLP p(x_i) > 0 on the input without its gradient (§3.5, second method)
    router      r_i > 0, with the loss on the router itself (§3.5, first method; it costs the model a little)

Both have the binary cross-entropy against membership in the k greatest, times `loss_weight`, which the paper does not
give. `top_k` keeps the training rule in eval mode: for measurements, and for models that need not be causal.

Decoding keeps in the block's cache the tokens that were chosen, no others. Of ragged batches the rows that choose fewer
tokens than another are filled up with masked ones. Where a sequence is padded, k is of its real tokens. Cost: C times
the block's maps and C² times its attention, in training; in eval mode what the predictor chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Config, Context, Enhancement, Layer, LayerConfig, State
from ...base.stack import StackConfig
from ..compose import replace_parts

C = TypeVar("C", bound=Config)
Chosen = tuple[Int[Tensor, "b c"], Bool[Tensor, "b c"] | None]
"""The places of the chosen tokens, in order, and which of them are no fillers; None when none is."""


class GreatestWeights(nn.Module):
    """The rule of training: the ⌈C·t⌉ greatest weights of each sequence."""

    def __init__(self, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity

    def forward(
        self, x: Float[Tensor, "b t d"], weights: Float[Tensor, "b t"], real: Bool[Tensor, "b t"] | None
    ) -> Chosen:
        """Choose; the number of places is a function of shapes alone."""
        n_places = math.ceil(round(self.capacity * weights.shape[1], 6))
        ranked = weights if real is None else weights.masked_fill(~real, -torch.inf)
        best = ranked.argsort(dim=1, descending=True, stable=True)[:, :n_places]
        index, order = best.sort(dim=1)
        if real is None:
            return index, None
        wanted = (real.sum(1, keepdim=True) * self.capacity).double().round(decimals=6).ceil()
        return index, (torch.arange(n_places, device=index.device) < wanted).gather(1, order)

    def loss(
        self, x: Float[Tensor, "b t d"], weights: Float[Tensor, "b t"], wanted: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t"] | None:
        """There is nothing to teach."""
        return None


class AboveZero(nn.Module):
    """A causal rule: a token whose score is above zero is chosen, whatever the others are."""

    def score(self, x: Float[Tensor, "b t d"], weights: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The router's own weight (§3.5, first method)."""
        return weights

    def forward(
        self, x: Float[Tensor, "b t d"], weights: Float[Tensor, "b t"], real: Bool[Tensor, "b t"] | None
    ) -> Chosen:
        """Choose; there are as many places as the row that chooses most needs."""
        chosen = self.score(x, weights) > 0
        if real is not None:
            chosen = chosen & real
        n_places = int(chosen.sum(1).max())
        index = (~chosen).long().argsort(dim=1, stable=True)[:, :n_places]
        kept = chosen.gather(1, index)
        return index, None if kept.all() else kept

    def loss(
        self, x: Float[Tensor, "b t d"], weights: Float[Tensor, "b t"], wanted: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t"] | None:
        """The cross-entropy of each token's score against the choice of training."""
        score = self.score(x, weights)
        return F.binary_cross_entropy_with_logits(score, wanted.to(score.dtype), reduction="none")


class Predictor(AboveZero):
    """The causal rule by a second, small network, which teaches the model nothing (§3.5, second method)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, max(1, d_model // 4))
        self.out_proj = nn.Linear(max(1, d_model // 4), 1)

    def score(self, x: Float[Tensor, "b t d"], weights: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The network's guess, from the input without its gradient."""
        return self.out_proj(F.silu(self.in_proj(x.detach())))[..., 0]  # type: ignore[no-any-return]


class MixtureOfDepths(Layer):
    """A block and the router that chooses its tokens. `chosen` is a tap: its output tells who went through."""

    def __init__(
        self,
        d_model: int,
        block: Layer,
        capacity: float,
        rule: GreatestWeights | AboveZero,
        loss_weight: float,
    ) -> None:
        super().__init__()
        self.router = nn.Linear(d_model, 1, bias=False)
        self.block, self.rule = block, rule
        self.training_rule = GreatestWeights(capacity)
        self.chosen = nn.Identity()
        self.loss_weight = loss_weight

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Route, run the block on the chosen tokens, and add what it makes of them, weighted."""
        real = context.layout.real
        with torch.autocast(x.device.type, enabled=False):  # near weights must not become ties
            wide = x.to(self.router.weight.dtype)
            weights = self.router(wide)[..., 0]
            rule = self._training_rule(state) if self.training else self.rule
            index, kept = rule(wide, weights, real)
            chosen = self.chosen(_membership(index, kept, weights))
            if self.training:
                self._teach(wide, weights, chosen, context)
        if not index.shape[1]:
            return x
        places = index[..., None].expand(-1, -1, x.shape[2])
        picked = x.gather(1, places)
        added = self.block(picked, context.select(index, kept), state) - picked
        added = added * weights.gather(1, index)[..., None]
        added = added if kept is None else added.masked_fill(~kept[..., None], 0)
        return x.scatter_add(1, places, added.to(x.dtype))

    def _training_rule(self, state: Any) -> GreatestWeights:
        if state is not None:
            raise ValueError(
                "mixture of depths chooses tokens by those after them while training, so it cannot decode step by "
                "step; call model.eval() first"
            )
        return self.training_rule

    def _teach(self, x: Tensor, weights: Tensor, chosen: Tensor, context: Context) -> None:
        """Add the loss of the rule that decoding will go by, a mean over real tokens."""
        losses = self.rule.loss(x, weights, chosen)
        if losses is None:
            return
        real = torch.ones_like(chosen) if context.layout.real is None else context.layout.real
        loss = losses.masked_fill(~real, 0).sum() / real.sum().clamp(min=1)
        context.auxiliary.add(self, "mixture_of_depths", self.loss_weight * loss)

    def initial_state(self) -> State | None:
        return self.block.initial_state()


def _membership(
    index: Int[Tensor, "b c"], kept: Bool[Tensor, "b c"] | None, weights: Float[Tensor, "b t"]
) -> Bool[Tensor, "b t"]:
    """Which tokens are at these places."""
    members = torch.zeros_like(weights, dtype=torch.bool)
    return members.scatter(1, index, torch.ones_like(index, dtype=torch.bool) if kept is None else kept)


@dataclass(frozen=True)
class MixtureOfDepthsConfig(LayerConfig):
    """A block for some of the tokens. capacity: C, their share in training; decoding: the rule of eval mode."""

    kind: ClassVar[str] = "mixture_of_depths"
    block: LayerConfig
    capacity: Annotated[float, Gt(0), Le(1)] = 0.125
    decoding: Literal["predictor", "router", "top_k"] = "predictor"
    loss_weight: Annotated[float, Ge(0)] = 0.01

    def build(self, d_model: int) -> MixtureOfDepths:
        rules: dict[str, Callable[[], GreatestWeights | AboveZero]] = {
            "predictor": lambda: Predictor(d_model),
            "router": AboveZero,
            "top_k": lambda: GreatestWeights(self.capacity),
        }
        block = self.block.build(d_model)
        return MixtureOfDepths(d_model, block, self.capacity, rules[self.decoding](), self.loss_weight)


def mixture_of_depths(
    capacity: float = 0.125, every: int = 2, decoding: Literal["predictor", "router", "top_k"] = "predictor"
) -> Enhancement:
    """Let a share of the tokens through each `every`-th block: blocks 2, 4, 6, … as in the paper.

    Raises `ValueError` for a capacity outside (0, 1], for `every` below 1, or greater than the number of blocks.
    """
    if not 0 < capacity <= 1:
        raise ValueError(f"capacity is the share of tokens in (0, 1], got {capacity}; the paper's is 0.125")
    if every < 1:
        raise ValueError(f"every must be 1 (each block) or more, got {every}; the paper's is 2")

    def wrap(number: int, block: LayerConfig) -> LayerConfig:
        if number % every:
            return block
        inner = block.block if isinstance(block, MixtureOfDepthsConfig) else block
        return MixtureOfDepthsConfig(inner, capacity, decoding)

    def change(stack: StackConfig) -> StackConfig:
        if len(stack.blocks) < every:
            raise ValueError(
                f"mixture of depths in every block of {every} changes none of {len(stack.blocks)}; "
                f"choose every={len(stack.blocks)} or less, or more layers"
            )
        return replace(stack, blocks=tuple(wrap(n, block) for n, block in enumerate(stack.blocks, 1)))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, change)

    return apply
