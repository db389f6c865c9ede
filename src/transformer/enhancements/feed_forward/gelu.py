"""Gaussian error linear units (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...base.feed_forward import FeedForward, ReluFeedForwardConfig
from ...base.sockets import Config, Enhancement, FeedForwardConfig
from ..compose import replace_parts

C = TypeVar("C", bound=Config)
Form = Literal["erf", "tanh"]


class GELUFeedForward(FeedForward):
    """A feed-forward network whose non-linearity weighs its input by the normal distribution at it.

    GELU(x) = x · Φ(x) = x/2 · (1 + erf(x/√2))                       (`erf`, exact: BERT)
            ≈ x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))           (`tanh`: the released GPT-2 weights)
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float, bias: bool, form: Form) -> None:
        super().__init__(d_model, d_ff, dropout, bias)
        self.approximate = {"erf": "none", "tanh": "tanh"}[form]

    def activation(self, x: Float[Tensor, "b t f"]) -> Float[Tensor, "b t f"]:
        """GELU, by PyTorch's kernel."""
        return F.gelu(x, approximate=self.approximate)


@dataclass(frozen=True)
class GELUFeedForwardConfig(FeedForwardConfig):
    """A feed-forward network with GELU."""

    kind: ClassVar[str] = "gelu_feed_forward"
    d_ff: Annotated[int, Ge(1)] = 2048
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = True
    form: Form = "erf"

    def build(self, d_model: int) -> GELUFeedForward:
        return GELUFeedForward(d_model, self.d_ff, self.dropout, self.bias, self.form)


def gelu(form: Form = "erf") -> Enhancement:
    """Use GELU in every feed-forward network that has the paper's ReLU."""

    def change(part: ReluFeedForwardConfig) -> GELUFeedForwardConfig:
        return GELUFeedForwardConfig(part.d_ff, part.dropout, part.bias, form)

    def apply(config: C) -> C:
        return replace_parts(config, ReluFeedForwardConfig, change)

    return apply
