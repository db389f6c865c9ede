"""The networks of a mixture: alike in shape, their maps side by side in one matrix each."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....base.feed_forward import FeedForward
from ....base.sockets import FeedForwardConfig, OutputProjection
from ....base.stacked import Product, StackedLinear, StackedOutputProjection
from ...feed_forward.glu import GatedFeedForward


class Experts(nn.Module):
    """So many networks of one config: any plain one of the library, or any gated one.

    `up_proj.weight` is `n_experts` matrices of d_ff × d_model, one above the other, and so on for each map. Dropout
    inside an expert falls on rows in the order in which they are dispatched.
    """

    def __init__(self, d_model: int, n_experts: int, config: FeedForwardConfig) -> None:
        super().__init__()
        with torch.device("meta"):
            one = config.build(d_model)
        if not isinstance(one, FeedForward | GatedFeedForward):
            raise ValueError(
                f"an expert is a plain or a gated feed-forward network, and {config.kind} is neither; "
                "choose feed_forward, gelu_feed_forward or gated_feed_forward"
            )
        self.n_experts = n_experts
        for name, map_ in one.named_children():
            if isinstance(map_, nn.Linear):
                kind = StackedOutputProjection if isinstance(map_, OutputProjection) else StackedLinear
                stacked = kind(n_experts, map_.in_features, map_.out_features, map_.bias is not None)
                self.add_module(name, stacked)
        self.inputs = [name for name, _ in self.named_children() if name != "down_proj"]
        self.combine = one.combine if isinstance(one, GatedFeedForward) else one.activation
        self.dropout = one.dropout

    def forward(self, x: Float[Tensor, "... d"], product: Product) -> Float[Tensor, "... d"]:
        """Pass each row through the expert that `product` has for it."""
        inner = self.combine(*(self.get_submodule(name)(x, product) for name in self.inputs))
        return self.get_submodule("down_proj")(self.dropout(inner), product)  # type: ignore[no-any-return]
