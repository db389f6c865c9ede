"""Gaussian error linear units (Hendrycks and Gimpel 2016, arXiv 1606.08415 §2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...base.feed_forward import FeedForward, PlainFeedForwardConfig
from ...base.sockets import Config, Enhancement
from ..compose import replace_parts

C = TypeVar("C", bound=Config)
Form = Literal["erf", "tanh", "quick"]


def quick_gelu(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """x · σ(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


FORMS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"erf": F.gelu, "tanh": partial(F.gelu, approximate="tanh"), "quick": quick_gelu}
)


class GELUFeedForward(FeedForward):
    """A feed-forward network whose non-linearity weighs its input by the normal distribution at it.

    GELU(x) = x · Φ(x) = x/2 · (1 + erf(x/√2))                       (`erf`, exact: BERT)
            ≈ x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))           (`tanh`: the released GPT-2 weights)
            ≈ x · σ(1.702 x)                                         (`quick`: the released CLIP weights)

    The forms are different functions, up to 0.0005 (`tanh`) and 0.021 (`quick`) away from the exact one: weights
    trained with one do not belong to another. `erf` and `tanh` are PyTorch's kernels. Cost: O(d_ff) per token.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float, bias: bool, form: Form) -> None:
        super().__init__(d_model, d_ff, dropout, bias)
        self.function = FORMS[form]

    def activation(self, x: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
        """GELU in the form asked for."""
        return self.function(x)


@dataclass(frozen=True)
class GELUFeedForwardConfig(PlainFeedForwardConfig):
    """A feed-forward network with GELU."""

    kind: ClassVar[str] = "gelu_feed_forward"
    form: Form = "erf"

    def build(self, d_model: int) -> GELUFeedForward:
        return GELUFeedForward(d_model, self.d_ff, self.dropout, self.bias, self.form)


def gelu(form: Form | None = None) -> Enhancement:
    """Use GELU in every plain feed-forward network.

    form: which GELU. Not given, it is the exact one, and a network that has GELU already keeps its form.
    """

    def change(part: PlainFeedForwardConfig) -> PlainFeedForwardConfig:
        if form is None and isinstance(part, GELUFeedForwardConfig):
            return part
        return GELUFeedForwardConfig(part.d_ff, part.dropout, part.bias, form or "erf")

    def apply(config: C) -> C:
        return replace_parts(config, PlainFeedForwardConfig, change)

    return apply
