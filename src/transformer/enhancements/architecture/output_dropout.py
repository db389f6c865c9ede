"""Dropout on a stack's output (T5, Raffel et al. 2019, arXiv 1910.10683 §2.1).

    y = Dropout(norm(x_N))

T5 drops entries in five places: of the embeddings, of each branch, of attention's weights, inside the feed-forward
network and of what a whole stack gives. The last is this part; the others have places elsewhere. The 2017 model has
none at the output. Cost: a random bit for each entry while training, nothing afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from ...base.sockets import Context, Layer, Position, Probability
from ...base.stack import Stack, StackConfig, StackState
from ...base.wiring import Dropout


class OutputDropoutStack(Stack):
    """A stack that drops entries of what it gives, after its last norm."""

    def __init__(
        self, blocks: list[Layer], position: Position, norm: nn.Module, dropout: float, output_dropout: float
    ) -> None:
        super().__init__(blocks, position, norm, dropout)
        self.output_dropout = Dropout(output_dropout)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: StackState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Turn embeddings into hidden states, some entries of which are dropped."""
        return self.output_dropout(super().forward(x, context, state))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class OutputDropoutStackConfig(StackConfig):
    """A stack with dropout on its output."""

    kind: ClassVar[str] = "output_dropout_stack"
    output_dropout: Probability = 0.1

    def build(self, d_model: int) -> OutputDropoutStack:
        blocks, position = [block.build(d_model) for block in self.blocks], self.position.build(d_model)
        return OutputDropoutStack(
            blocks, position, self.norm.build(d_model), self.dropout, self.output_dropout
        )
