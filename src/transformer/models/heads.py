"""Small maps on top of an encoder, for tasks that a model is fine-tuned to (arXiv 1810.04805 §4 and figure 4).

    classes(x) = Dropout(pool(h)) W + b,   tags(x)[t] = Dropout(h[t]) W + b

They give scores; a softmax, or a squared error where there is one number, is left to the objective. Weights of the
map begin at N(0, 0.02²), its biases at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from annotated_types import MinLen
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..base.sockets import AuxiliaryLosses, Config, Execution, InitializationConfig, Probability
from ..base.wiring import Dropout
from .encoder_only import EncoderOnly, EncoderOnlyConfig
from .masked_head import NoHeadConfig
from .pooler import NoPoolerConfig, PoolerConfig

AttentionMask = Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None


class SequenceClassifier(nn.Module):
    """Scores each of `n_classes` for a whole sequence; for pairs of texts, `segments` tells them apart."""

    def __init__(
        self, encoder: EncoderOnly, n_classes: int, dropout: float = 0.1, classes: Sequence[str] | None = None
    ) -> None:
        """Put a map to classes on an encoder; `classes` are their names, numbers unless given."""
        super().__init__()
        self.encoder, self.dropout = encoder, Dropout(dropout)
        self.score = _score(encoder, n_classes)
        names = tuple(map(str, range(n_classes))) if classes is None else tuple(classes)
        self.config = SequenceClassifierConfig(encoder.config, names, dropout)

    @property
    def execution(self) -> Execution:
        """How the encoder is computed."""
        return self.encoder.execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self.encoder.execution = execution

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        attention_mask: AttentionMask = None,
        *,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Float[Tensor, "b _"]:
        """Return the scores of each row's classes."""
        hidden = self.encoder.encode(tokens, segments, attention_mask, auxiliary=auxiliary)
        return self.score(self.dropout(self.encoder.pooler(hidden, attention_mask)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SequenceClassifierConfig(Config):
    """A classifier of whole sequences as data: its encoder, and the names of the classes."""

    kind: ClassVar[str] = "sequence_classifier"
    encoder: EncoderOnlyConfig
    classes: Annotated[tuple[str, ...], MinLen(1)]
    dropout: Probability = 0.1

    @property
    def d_model(self) -> int:
        return self.encoder.d_model

    @property
    def vocab_size(self) -> int:
        return self.encoder.vocab_size

    @property
    def tie_embeddings(self) -> bool:
        return self.encoder.tie_embeddings

    @property
    def initialization(self) -> InitializationConfig:
        return self.encoder.initialization

    def build(self, execution: Execution) -> SequenceClassifier:
        encoder = EncoderOnly(self.encoder, execution)
        return SequenceClassifier(encoder, len(self.classes), self.dropout, self.classes)


def classifier(encoder: EncoderOnlyConfig, classes: Sequence[str]) -> SequenceClassifierConfig:
    """Return the classifier on top of an encoder: BERT's pooler, dropout as in its stack, and a map to the classes."""
    pooler = PoolerConfig() if isinstance(encoder.pooler, NoPoolerConfig) else encoder.pooler
    body = replace(encoder, lm_head=NoHeadConfig(), pooler=pooler, tie_embeddings=False)
    return SequenceClassifierConfig(body, tuple(classes), encoder.stack.dropout)


class SequenceRegressor(nn.Module):
    """Gives one number for a whole sequence, such as how alike two texts are."""

    def __init__(self, encoder: EncoderOnly, dropout: float = 0.1) -> None:
        super().__init__()
        self.classifier = SequenceClassifier(encoder, 1, dropout)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        attention_mask: AttentionMask = None,
    ) -> Float[Tensor, " b"]:
        """Return the number of each row."""
        return self.classifier(tokens, segments, attention_mask)[:, 0]  # type: ignore[no-any-return]


class TokenClassifier(nn.Module):
    """Scores each of `n_classes` for every token: names in a text; two classes are the ends of an answer."""

    def __init__(self, encoder: EncoderOnly, n_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, Dropout(dropout)
        self.score = _score(encoder, n_classes)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        attention_mask: AttentionMask = None,
    ) -> Float[Tensor, "b t _"]:
        """Return the scores of each token's classes."""
        return self.score(self.dropout(self.encoder.encode(tokens, segments, attention_mask)))  # type: ignore[no-any-return]


def _score(encoder: EncoderOnly, n_classes: int) -> nn.Linear:
    """The map from a vector to the scores of classes."""
    if n_classes < 1:
        raise ValueError(f"n_classes must be at least 1, got {n_classes}")
    score = nn.Linear(encoder.config.d_model, n_classes)
    nn.init.normal_(score.weight, std=0.02)
    nn.init.zeros_(score.bias)
    return score
