"""The map from hidden states to logits: a matrix, usually the embedding's own (arXiv 1706.03762 §3.4).

    logits = cap(scale · (h W + b)),   cap(z) = c · tanh(z / c) where there is a cap

Gemma 2 (arXiv 2408.00118 §2) caps its logits at 30; T5 and Granite scale them; GPT-J, Phi and BART have a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from ..base.embedding import LinearHeadConfig
from ..enhancements.attention.soft_cap import cap_scores


class ScaledHead(nn.Linear):
    """A map to logits that are scaled."""

    def __init__(self, d_model: int, vocab_size: int, bias: bool, scale: float) -> None:
        super().__init__(d_model, vocab_size, bias)
        self.scale = scale

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        """Map hidden states to logits."""
        return super().forward(x) * self.scale


class CappedHead(ScaledHead):
    """A map to logits that are scaled and squashed into ±soft_cap."""

    def __init__(self, d_model: int, vocab_size: int, bias: bool, scale: float, soft_cap: float) -> None:
        super().__init__(d_model, vocab_size, bias, scale)
        self.soft_cap = soft_cap

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        """Map hidden states to logits."""
        return cap_scores(super().forward(x), self.soft_cap)


@dataclass(frozen=True)
class HeadConfig(LinearHeadConfig):
    """The map to logits, as data, with what came after 2017."""

    kind: ClassVar[str] = "head"
    bias: bool = False
    scale: Annotated[float, Gt(0)] = 1.0
    soft_cap: Annotated[float, Gt(0)] | None = None

    def build(self, d_model: int, vocab_size: int) -> nn.Linear:
        if self.soft_cap is not None:
            return CappedHead(d_model, vocab_size, self.bias, self.scale, self.soft_cap)
        if self.scale != 1:
            return ScaledHead(d_model, vocab_size, self.bias, self.scale)
        return nn.Linear(d_model, vocab_size, bias=self.bias)
