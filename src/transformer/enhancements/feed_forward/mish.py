"""Mish (Misra 2019, arXiv 1908.08681 §2)."""

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


class MishFeedForward(FeedForward):
    """A feed-forward network whose non-linearity weighs its input by a squashed softplus.

    Mish(x) = x · tanh(softplus(x)),   softplus(x) = log(1 + eˣ)

    Smooth, with a least value of −0.309 at x = −1.192. Written as it stands, eˣ overflows beyond x = 88 in float32;
    PyTorch's kernel does not, at any x. Cost: O(d_ff) per token, an exponential, a logarithm and a tanh.
    """

    def activation(self, x: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
        """x · tanh(softplus(x))."""
        return F.mish(x)


@dataclass(frozen=True)
class MishFeedForwardConfig(PlainFeedForwardConfig):
    """A feed-forward network with Mish."""

    kind: ClassVar[str] = "mish_feed_forward"

    def build(self, d_model: int) -> MishFeedForward:
        return MishFeedForward(d_model, self.d_ff, self.dropout, self.bias)


def mish() -> Enhancement:
    """Use Mish in every plain feed-forward network."""

    def change(part: PlainFeedForwardConfig) -> MishFeedForwardConfig:
        return MishFeedForwardConfig(part.d_ff, part.dropout, part.bias)

    def apply(config: C) -> C:
        return replace_parts(config, PlainFeedForwardConfig, change)

    return apply
