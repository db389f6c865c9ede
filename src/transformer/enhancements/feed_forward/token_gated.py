"""A feed-forward network whose whole output a token lets pass or not: σ(w·x) F(x).

Qwen1.5-MoE (arXiv 2407.10671 §2.2) gates the network that all tokens share so, beside its experts. Cost: d_model
multiplications a token more than F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...base.sockets import Context, FeedForwardConfig, Layer
from .glu import GatedFeedForwardConfig


class TokenGatedFeedForward(Layer):
    """A network times one number for each token."""

    def __init__(self, d_model: int, inner: Layer) -> None:
        super().__init__()
        self.inner, self.gate = inner, nn.Linear(d_model, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Transform each token by itself, and let some of it pass."""
        return torch.sigmoid(self.gate(x)) * self.inner(x, context)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TokenGatedFeedForwardConfig(FeedForwardConfig):
    """A network with a gate of one number for each token."""

    kind: ClassVar[str] = "token_gated_feed_forward"
    inner: FeedForwardConfig = GatedFeedForwardConfig()

    def build(self, d_model: int) -> TokenGatedFeedForward:
        return TokenGatedFeedForward(d_model, self.inner.build(d_model))
