"""LayerDrop: whole blocks are left out of a training step (Fan et al. 2019, arXiv 1909.11556 §3).

    y = x with probability p, else Block(x)

One draw for the whole batch, so that a block which is left out costs nothing. Nothing is rescaled, and in eval mode all
blocks are used. A model trained so still works when some of its blocks are taken out for good (§3.3; `only_blocks`), or
when it is left early: with rates that grow from 0 at the first block to p at the last (`growing`), the first blocks
learn to do without the last ones, as LayerSkip has it (Elhoushi et al. 2024, arXiv 2404.16710 §4.1; its rates grow
exponentially, ours linearly, and its loss at every block is not built).

Cost: (1 − p) times that of the block. A model that skips by a draw cannot be compiled without a graph break.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.sockets import Config, Context, Enhancement, Layer, LayerConfig, Probability, State
from ...base.stack import StackConfig
from ..compose import replace_parts

C = TypeVar("C", bound=Config)


class LayerDrop(Layer):
    """A block that a training step leaves out with probability `rate`."""

    def __init__(self, block: Layer, rate: float) -> None:
        super().__init__()
        self.block, self.rate = block, rate

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Run the block, or pass it by."""
        if self.training and float(torch.rand(())) < self.rate:
            return x
        return self.block(x, context, state)  # type: ignore[no-any-return]

    def initial_state(self) -> State | None:
        return self.block.initial_state()


@dataclass(frozen=True)
class LayerDropConfig(LayerConfig):
    """A block that is left out of a share of the training steps."""

    kind: ClassVar[str] = "layer_drop"
    block: LayerConfig
    rate: Probability = 0.2

    def build(self, d_model: int) -> LayerDrop:
        return LayerDrop(self.block.build(d_model), self.rate)


def layer_drop(rate: float = 0.2, growing: bool = False) -> Enhancement:
    """Leave blocks out while training: each with probability `rate`, or `growing` from 0 to it over a stack.

    Raises `ValueError` for a rate that is not a probability below 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of LayerDrop is a probability from 0 to below 1, got {rate}; try 0.2")

    def wrap(block: LayerConfig, share: float) -> LayerConfig:
        inner = block.block if isinstance(block, LayerDropConfig) else block
        return LayerDropConfig(inner, rate * share)

    def change(stack: StackConfig) -> StackConfig:
        last = max(1, len(stack.blocks) - 1)
        shares = [n / last if growing else 1.0 for n in range(len(stack.blocks))]
        return replace(stack, blocks=tuple(map(wrap, stack.blocks, shares)))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, change)

    return apply
