"""SiLU: Swish with β = 1 (Ramachandran et al. 2017, arXiv 1710.05941).

Hendrycks and Gimpel had named the function before, in arXiv 1606.08415.
"""

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


class SiLUFeedForward(FeedForward):
    """A feed-forward network whose non-linearity weighs its input by the logistic function at it.

    SiLU(x) = x · σ(x)

    Smooth, and slightly negative left of 0: its least value is −0.278 at x = −1.278. Swish has a factor β inside σ,
    which may be learned; everyone fixes it at 1, and so do we. PyTorch's kernel. Cost: O(d_ff) per token.
    """

    def activation(self, x: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
        """x · σ(x)."""
        return F.silu(x)


@dataclass(frozen=True)
class SiLUFeedForwardConfig(PlainFeedForwardConfig):
    """A feed-forward network with SiLU."""

    kind: ClassVar[str] = "silu_feed_forward"

    def build(self, d_model: int) -> SiLUFeedForward:
        return SiLUFeedForward(d_model, self.d_ff, self.dropout, self.bias)


def silu() -> Enhancement:
    """Use SiLU in every plain feed-forward network."""

    def change(part: PlainFeedForwardConfig) -> SiLUFeedForwardConfig:
        return SiLUFeedForwardConfig(part.d_ff, part.dropout, part.bias)

    def apply(config: C) -> C:
        return replace_parts(config, PlainFeedForwardConfig, change)

    return apply
