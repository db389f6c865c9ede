"""Gated linear units in the feed-forward network (Shazeer 2020, arXiv 2002.05202).

One half of the first map decides how much of the other half passes:

    FFN(x) = (φ(x W) ⊙ x V) W₂        gate_proj W, up_proj V, down_proj W₂; no bias, as in §2

with φ the logistic function (GLU), nothing (Bilinear), ReLU (ReGLU), GELU (GEGLU) or SiLU (SwiGLU). Three matrices
where a plain network has two, so at the same number of parameters d_ff is two thirds as large; the enhancements below
set that width. Ours differs from the paper in that biases are possible. Cost: 3·d_model·d_ff multiplications a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.feed_forward import PlainFeedForwardConfig
from ...base.sockets import Config, Context, Enhancement, FeedForwardConfig, Layer, OutputProjection
from ...base.wiring import Dropout
from ..compose import replace_parts

C = TypeVar("C", bound=Config)
Activation = Literal["sigmoid", "identity", "relu", "gelu", "gelu_tanh", "silu"]


def identity(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """x: the gate of the bilinear network."""
    return x


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "sigmoid": torch.sigmoid,
        "identity": identity,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
    }
)
"""φ by name. `gelu_tanh` is GELU in the form that T5 v1.1 and Gemma gate with."""


class GatedFeedForward(Layer):
    """A feed-forward network with a gate; the module's docstring has the equation.

    `dropout` falls on the product of the gate and what it lets pass.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[[Tensor], Tensor],
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = OutputProjection(d_ff, d_model, bias=bias)
        self.activation, self.dropout = activation, Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Transform each token by itself."""
        inner = self.combine(self.gate_proj(x), self.up_proj(x))
        return self.down_proj(self.dropout(inner))  # type: ignore[no-any-return]

    def combine(self, gate: Float[Tensor, "*n"], up: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """What the gate lets pass; other gated networks override this."""
        return self.activation(gate) * up


@dataclass(frozen=True)
class GatedFeedForwardConfig(FeedForwardConfig):
    """A feed-forward network with a gate: SwiGLU unless another `activation` is named."""

    kind: ClassVar[str] = "gated_feed_forward"
    d_ff: Annotated[int, Ge(1)] = 1365
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = False
    activation: Activation = "silu"

    def build(self, d_model: int) -> GatedFeedForward:
        return GatedFeedForward(d_model, self.d_ff, ACTIVATIONS[self.activation], self.dropout, self.bias)


def matched_width(plain: PlainFeedForwardConfig, d_model: int, bias: bool, multiple_of: int = 1) -> int:
    """The d_ff of the gated network whose number of parameters is nearest to that of `plain`.

    Without biases that is ⅔ of the plain one's d_ff, rounded to a multiple of `multiple_of`.
    """
    total = 2 * d_model * plain.d_ff + plain.bias * (plain.d_ff + d_model)
    per_unit = 3 * d_model + 2 * bias  # a unit of width has an entry in each bias but the last
    units = (total - bias * d_model) / per_unit
    return multiple_of * max(1, round(units / _checked(multiple_of)))


def llama_width(d_model: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """LLaMA's d_ff: ⅔ of 4·d_model, times `multiplier`, up to the next multiple of `multiple_of`.

    Both products are cut to whole numbers before the last step, as in the released code. `multiplier` is above 1
    where grouped attention has given up parameters: 1.3 in Llama 2 70B and Llama 3 8B.
    """
    width = int(multiplier * int(2 * 4 * d_model / 3))
    return multiple_of * -(-width // _checked(multiple_of))


def _checked(multiple_of: int) -> int:
    if multiple_of < 1:
        raise ValueError(
            f"a width cannot be a multiple of {multiple_of}; multiple_of is 1 (any width) or more"
        )
    return multiple_of


def gated(
    activation: Activation, d_ff: int | None = None, multiple_of: int = 1, bias: bool = False
) -> Enhancement:
    """Gate every plain feed-forward network, at the same number of parameters unless `d_ff` is given.

    A network that has a gate already gets this activation, and keeps its bias, and its width unless `d_ff` is given.
    Raises `ValueError` where biases count and the config is a part of a model, which does not know d_model.
    """

    def apply(config: C) -> C:
        d_model: int | None = getattr(config, "d_model", None)

        def gate(part: PlainFeedForwardConfig) -> GatedFeedForwardConfig:
            if d_model is None and d_ff is None and (part.bias or bias):
                raise ValueError(
                    f"the gated width that matches d_ff {part.d_ff} with biases depends on d_model, which "
                    f"{type(config).__name__} does not know; apply the enhancement to the whole model, or give d_ff"
                )
            width = matched_width(part, d_model or 1, bias, multiple_of) if d_ff is None else d_ff
            return GatedFeedForwardConfig(width, part.dropout, bias, activation)

        def change_gate(part: GatedFeedForwardConfig) -> GatedFeedForwardConfig:
            return replace(part, d_ff=part.d_ff if d_ff is None else d_ff, activation=activation)

        return replace_parts(
            replace_parts(config, GatedFeedForwardConfig, change_gate), PlainFeedForwardConfig, gate
        )

    return apply


def glu(d_ff: int | None = None, multiple_of: int = 1, bias: bool = False) -> Enhancement:
    """Gate with the logistic function: σ(x W) ⊙ x V."""
    return gated("sigmoid", d_ff, multiple_of, bias)


def bilinear(d_ff: int | None = None, multiple_of: int = 1, bias: bool = False) -> Enhancement:
    """Gate with the linear map itself: x W ⊙ x V."""
    return gated("identity", d_ff, multiple_of, bias)


def reglu(d_ff: int | None = None, multiple_of: int = 1, bias: bool = False) -> Enhancement:
    """Gate with ReLU: max(0, x W) ⊙ x V."""
    return gated("relu", d_ff, multiple_of, bias)


def geglu(d_ff: int | None = None, multiple_of: int = 1, bias: bool = False) -> Enhancement:
    """Gate with GELU: GELU(x W) ⊙ x V."""
    return gated("gelu", d_ff, multiple_of, bias)


def swiglu(d_ff: int | None = None, multiple_of: int = 1, bias: bool = False) -> Enhancement:
    """Gate with SiLU: SiLU(x W) ⊙ x V."""
    return gated("silu", d_ff, multiple_of, bias)
