"""The map from hidden states to the logits of masked tokens (BERT, arXiv 1810.04805 §3.1, task 1).

    logits = norm(GELU(h W₁ + b₁)) W + b,   W the embedding's own matrix where it is tied

The paper says only that the hidden states go into a softmax over the vocabulary; the transformation before it is in
the released code. Cost: d² + d·v multiplications a token, so it is worth applying to masked positions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

from jaxtyping import Float
from torch import Tensor, nn

from ..base.normalization import LayerNormConfig
from ..base.sockets import Config, NormConfig
from ..enhancements.feed_forward.gelu import FORMS, Form


class MaskedHead(nn.Linear):
    """A transformation with GELU and a norm, then a linear map to logits; the linear map is this module itself."""

    def __init__(self, d_model: int, vocab_size: int, norm: nn.Module, form: Form) -> None:
        super().__init__(d_model, vocab_size)
        self.dense = nn.Linear(d_model, d_model)
        self.function, self.norm = FORMS[form], norm

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        """Map hidden states to logits."""
        return super().forward(self.norm(self.function(self.dense(x))))


class NoHead(nn.Module):
    """No map to logits, in a model that only encodes."""

    def forward(self, x: Float[Tensor, "b t d"]) -> NoReturn:
        """Refuse."""
        raise ValueError("this model has no map to logits; call encode(...) for its hidden states")


@dataclass(frozen=True)
class MaskedHeadConfig(Config):
    """The map to the logits of masked tokens, as data."""

    kind: ClassVar[str] = "masked_head"
    norm: NormConfig = LayerNormConfig(1e-12)
    form: Form = "erf"

    def build(self, d_model: int, vocab_size: int) -> MaskedHead:
        return MaskedHead(d_model, vocab_size, self.norm.build(d_model), self.form)


@dataclass(frozen=True)
class NoHeadConfig(Config):
    """A model that only encodes, as data."""

    kind: ClassVar[str] = "no_head"

    def build(self, d_model: int, vocab_size: int) -> NoHead:
        return NoHead()
