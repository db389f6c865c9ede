"""Squared ReLU, found by the architecture search of Primer (So et al. 2021, arXiv 2109.08668 §4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...base.feed_forward import FeedForward, PlainFeedForwardConfig
from ...base.sockets import Config, Enhancement
from ..compose import replace_parts

C = TypeVar("C", bound=Config)


class ReLUSquaredFeedForward(FeedForward):
    """A feed-forward network whose non-linearity is the square of the paper's.

    ReLU²(x) = max(0, x)²

    Its derivative, 2·max(0, x), has no jump at 0. It grows with the square of the input: in float16 it overflows
    beyond an input of 255. Primer's other change, a convolution after each attention projection, is not here.
    Cost: O(d_ff) per token.
    """

    def activation(self, x: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
        """max(0, x)²."""
        return F.relu(x).square()


@dataclass(frozen=True)
class ReLUSquaredFeedForwardConfig(PlainFeedForwardConfig):
    """A feed-forward network with squared ReLU."""

    kind: ClassVar[str] = "relu_squared_feed_forward"

    def build(self, d_model: int) -> ReLUSquaredFeedForward:
        return ReLUSquaredFeedForward(d_model, self.d_ff, self.dropout, self.bias)


def relu_squared() -> Enhancement:
    """Use squared ReLU in every plain feed-forward network."""

    def change(part: PlainFeedForwardConfig) -> ReLUSquaredFeedForwardConfig:
        return ReLUSquaredFeedForwardConfig(part.d_ff, part.dropout, part.bias)

    def apply(config: C) -> C:
        return replace_parts(config, PlainFeedForwardConfig, change)

    return apply
