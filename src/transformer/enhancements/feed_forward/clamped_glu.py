"""The gated network of gpt-oss (OpenAI 2025, arXiv 2508.10925 §2.2): SwiGLU with clamped halves and one added.

    FFN(x) = ((u + 1) ⊙ a σ(1.702 a)) W₂,   a = min(x W + b, c),   u = x V + c clipped to ±c

with c = 7. The gate is GELU in its "quick" form. Clamping keeps what enters W₂ bounded from above, and the 1 lets what
the gate opens pass even where u is 0. The paper gives only the words; the formula is that of the released code.
Cost: as SwiGLU, 3·d_model·d_ff multiplications a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from jaxtyping import Float
from torch import Tensor

from ...base.sockets import FeedForwardConfig
from .gelu import quick_gelu
from .glu import GatedFeedForward


class ClampedGatedFeedForward(GatedFeedForward):
    """A gated network whose halves are clamped."""

    def __init__(self, d_model: int, d_ff: int, limit: float, dropout: float, bias: bool) -> None:
        super().__init__(d_model, d_ff, quick_gelu, dropout, bias)
        self.limit = limit

    def combine(self, gate: Float[Tensor, "*n"], up: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """What the gate lets pass."""
        return (up.clamp(-self.limit, self.limit) + 1) * self.activation(gate.clamp(max=self.limit))


@dataclass(frozen=True)
class ClampedGatedFeedForwardConfig(FeedForwardConfig):
    """SwiGLU as gpt-oss has it; `limit` bounds both halves."""

    kind: ClassVar[str] = "clamped_gated_feed_forward"
    d_ff: Annotated[int, Ge(1)] = 1365
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = True
    limit: Annotated[float, Gt(0)] = 7.0

    def build(self, d_model: int) -> ClampedGatedFeedForward:
        return ClampedGatedFeedForward(d_model, self.d_ff, self.limit, self.dropout, self.bias)
