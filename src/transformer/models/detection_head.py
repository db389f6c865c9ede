"""One score for each token: was it put there by another model? (ELECTRA, arXiv 2003.10555 §2)

    score = GELU(h W₁ + b₁) w + b

A discriminator is trained on texts in which a small masked language model has put its guesses; positive is "replaced".
The paper says sigmoid(w · h); the transformation before it is in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from ..base.sockets import Config
from ..enhancements.feed_forward.gelu import FORMS, Form


class DetectionHead(nn.Linear):
    """A transformation with GELU, then a linear map to one number, which is this module itself."""

    def __init__(self, d_model: int, form: Form) -> None:
        super().__init__(d_model, 1)
        self.dense, self.function = nn.Linear(d_model, d_model), FORMS[form]

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t 1"]:
        """Score each token."""
        return super().forward(self.function(self.dense(x)))


@dataclass(frozen=True)
class DetectionHeadConfig(Config):
    """The score of replaced tokens, as data; it has no matrix to tie."""

    kind: ClassVar[str] = "detection_head"
    form: Form = "erf"

    def build(self, d_model: int, vocab_size: int) -> DetectionHead:
        return DetectionHead(d_model, self.form)
