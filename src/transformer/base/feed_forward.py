"""Position-wise feed-forward networks (arXiv 1706.03762 §3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .sockets import Context, FeedForwardConfig, Layer, OutputProjection
from .wiring import Dropout


class FeedForward(Layer):
    """Two linear maps with a ReLU between, the same at every position (§3.3, equation 2).

        FFN(x) = max(0, x W_1 + b_1) W_2 + b_2

    `dropout` falls on the inner activations; the paper has none there. Cost: 2·d_model·d_ff multiplications a token.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = OutputProjection(d_ff, d_model, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Transform each token by itself."""
        return self.down_proj(self.dropout(self.activation(self.up_proj(x))))  # type: ignore[no-any-return]

    def activation(self, x: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
        """The non-linearity; other ones override this."""
        return F.relu(x)


@dataclass(frozen=True)
class PlainFeedForwardConfig(FeedForwardConfig):
    """Two linear maps and a non-linearity, as data: what such networks share, whichever the non-linearity."""

    d_ff: Annotated[int, Ge(1)] = 2048
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = True


@dataclass(frozen=True)
class ReluFeedForwardConfig(PlainFeedForwardConfig):
    """The feed-forward network of §3.3."""

    kind: ClassVar[str] = "feed_forward"

    def build(self, d_model: int) -> FeedForward:
        return FeedForward(d_model, self.d_ff, self.dropout, self.bias)
