"""An encoder-only model: an embedding, one stack that reads both ways, and a map to logits (arXiv 1810.04805)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..base.embedding import EmbeddingConfig
from ..base.sockets import AuxiliaryLosses, Config, Context, Execution, InitializationConfig, Layout, Mask
from ..base.stack import Stack, StackConfig, check_length
from ..base.transformer import XavierConfig
from ..enhancements.architecture.bert_input import SegmentedEmbedding, SegmentedEmbeddingConfig
from ..enhancements.attention.naive import naive_attention
from .detection_head import DetectionHeadConfig
from .masked_head import MaskedHeadConfig, NoHeadConfig
from .pooler import NoPoolerConfig, PoolerConfig


@dataclass(frozen=True)
class EncoderOnlyConfig(Config):
    """An encoder-only model as data."""

    kind: ClassVar[str] = "encoder_only"
    vocab_size: Annotated[int, Ge(1)]
    d_model: Annotated[int, Ge(1)]
    stack: StackConfig
    embedding: EmbeddingConfig = SegmentedEmbeddingConfig()
    tie_embeddings: bool = True
    initialization: InitializationConfig = XavierConfig()
    lm_head: MaskedHeadConfig | NoHeadConfig | DetectionHeadConfig = MaskedHeadConfig()
    pooler: PoolerConfig | NoPoolerConfig = NoPoolerConfig()

    def __post_init__(self) -> None:
        if self.tie_embeddings and not isinstance(self.lm_head, MaskedHeadConfig):
            raise ValueError(
                f"a model with {self.lm_head.kind} has no matrix to tie; set tie_embeddings to false"
            )


class EncoderOnly(nn.Module):
    """Maps each token to a hidden state that knows the tokens on both sides, and that to the logits of what it was."""

    def __init__(self, config: EncoderOnlyConfig, execution: Execution | None = None) -> None:
        super().__init__()
        self.config = config
        self.execution = execution or Execution(naive_attention)
        self.embedding = config.embedding.build(config.vocab_size, config.d_model)
        self.stack: Stack = config.stack.build(config.d_model)
        self.lm_head = config.lm_head.build(config.d_model, config.vocab_size)
        self.pooler = config.pooler.build(config.d_model)
        config.initialization.initialize(self)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
        *,
        documents: Int[Tensor, "b t"] | None = None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Float[Tensor, "b t v"]:
        """Return the logits of the token that belongs at each position; the arguments are those of `encode`."""
        hidden = self.encode(tokens, segments, attention_mask, documents=documents, auxiliary=auxiliary)
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def encode(
        self,
        tokens: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
        *,
        documents: Int[Tensor, "b t"] | None = None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Return the hidden state of each token.

        `segments` says which text each token belongs to, from 0; None is all of them to the first. `attention_mask` is
        True (or 1) at real tokens; padding may stand on either side. `documents` numbers the documents packed into a
        row, which then do not see each other and each begin at position 0.
        Parts that add to the objective put their losses into `auxiliary`.
        """
        check_length(tokens.shape[1], self.stack, "input")
        layout = Layout.of(tokens, None if attention_mask is None else attention_mask.bool(), documents)
        context = Context(layout, Mask(), self.execution, auxiliary=auxiliary or AuxiliaryLosses())
        return self.stack(self._embed(tokens, segments), context)  # type: ignore[no-any-return]

    def _embed(self, tokens: Tensor, segments: Tensor | None) -> Float[Tensor, "b t d"]:
        if segments is None:
            return self.embedding(tokens)  # type: ignore[no-any-return]
        if not isinstance(self.embedding, SegmentedEmbedding):
            raise ValueError("this model knows no segments; leave them out")
        return self.embedding(tokens, segments)  # type: ignore[no-any-return]
