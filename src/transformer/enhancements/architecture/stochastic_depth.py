"""Stochastic depth, or DropPath (Huang et al. 2016, arXiv 1603.09382 §3).

While training, a branch is left out of the residual stream for a whole sequence at a time:

    x + b · Sublayer(x) / (1 − p),    b = 0 with probability p, else 1; p = rate · l/L in block l of L

The paper drops for a whole batch and multiplies by 1 − p when testing; here each row of the batch is drawn by itself,
and the branch is divided by 1 − p while training, as in dropout, so that a trained model is the plain one. The blocks
near the input are dropped least (§3, linear decay). The branch is computed even where it is dropped: rows of one
batch share it, so this regularizes but saves no time. Cost: one random number per row and branch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.sockets import Config, Enhancement, Layer, LayerConfig, NormConfig, Probability, WiringConfig
from ...base.stack import StackConfig
from ...base.wiring import Dropout, PostNormConfig, Wiring
from ..compose import replace_parts

C = TypeVar("C", bound=Config)


class PathDropout(Dropout):
    """Dropout of entries with probability `p`, then of whole rows of the batch with probability `rate`."""

    def __init__(self, p: float, rate: float) -> None:
        super().__init__(p)
        self.rate = rate

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Drop from what a branch adds to the stream."""
        x = super().forward(x)
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * kept.to(x.dtype) / (1 - self.rate)


@dataclass(frozen=True)
class StochasticDepthConfig(WiringConfig):
    """Another wiring whose branch is dropped with probability `rate`.

    It acts where that wiring has its dropout, at the place where the branch meets the stream.
    """

    kind: ClassVar[str] = "stochastic_depth"
    wiring: WiringConfig = PostNormConfig()
    rate: Probability = 0.0

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> Wiring:
        built = self.wiring.build(d_model, branch, norm)
        if not isinstance(built, Wiring):
            raise ValueError(
                f"stochastic depth acts on the dropout of a wiring, and {type(built).__name__} is none with one; "
                "use post_norm, pre_norm or another that adds one branch to the stream"
            )
        built.dropout = PathDropout(built.dropout.p, self.rate)
        return built


def stochastic_depth(rate: float = 0.1) -> Enhancement:
    """Drop branches while training: `rate` in the last block of each stack, less before it, in proportion.

    Raises `ValueError` for a rate that is not a probability below 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(
            f"the rate of stochastic depth is a probability from 0 to below 1, got {rate}; try 0.1"
        )

    def wrap(block: LayerConfig, share: float) -> LayerConfig:
        def change(wiring: WiringConfig) -> StochasticDepthConfig:
            inner = wiring.wiring if isinstance(wiring, StochasticDepthConfig) else wiring
            return StochasticDepthConfig(inner, rate * share)

        return replace_parts(block, WiringConfig, change)

    def change_stack(stack: StackConfig) -> StackConfig:
        last = len(stack.blocks)
        return replace(
            stack, blocks=tuple(wrap(block, number / last) for number, block in enumerate(stack.blocks, 1))
        )

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, change_stack)

    return apply
