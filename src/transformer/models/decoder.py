"""A decoder-only model: an embedding, one causal stack, and a map to logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..base.cache import GROWING, Storage
from ..base.embedding import EmbeddingConfig
from ..base.sockets import AuxiliaryLosses, Config, Context, Execution, InitializationConfig, Layout, Mask
from ..base.stack import Stack, StackConfig, StackState, check_length
from ..base.transformer import XavierConfig
from ..enhancements.attention.naive import naive_attention
from .head import HeadConfig


@dataclass(frozen=True)
class DecoderOnlyConfig(Config):
    """A decoder-only model as data."""

    kind: ClassVar[str] = "decoder_only"
    vocab_size: Annotated[int, Ge(1)]
    d_model: Annotated[int, Ge(1)]
    stack: StackConfig
    embedding: EmbeddingConfig = EmbeddingConfig(scaled=False)
    tie_embeddings: bool = True
    initialization: InitializationConfig = XavierConfig()
    lm_head: HeadConfig = HeadConfig()


class DecoderOnly(nn.Module):
    """Maps the tokens so far to the logits of the next one, at every position."""

    def __init__(self, config: DecoderOnlyConfig, execution: Execution | None = None) -> None:
        super().__init__()
        self.config = config
        self.execution = execution or Execution(naive_attention)
        self.embedding = config.embedding.build(config.vocab_size, config.d_model)
        self.stack: Stack = config.stack.build(config.d_model)
        self.lm_head = config.lm_head.build(config.d_model, config.vocab_size)
        config.initialization.initialize(self)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
        *,
        documents: Int[Tensor, "b t"] | None = None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Float[Tensor, "b t v"]:
        """Return the logits after each token.

        `attention_mask` is True (or 1) at real tokens; padding may stand on either side. `documents` numbers the
        documents packed into a row, which then do not see each other and each begin at position 0.
        Parts that add to the objective put their losses into `auxiliary`.
        """
        check_length(tokens.shape[1], self.stack, "input")
        layout = Layout.of(tokens, None if attention_mask is None else attention_mask.bool(), documents)
        return self._logits(tokens, layout, None, auxiliary or AuxiliaryLosses())

    def initial_state(self, storage: Storage = GROWING) -> StackState:
        """The state with which decoding begins; `storage` says how it is kept."""
        return self.stack.initial_state(storage)

    def decode(
        self,
        tokens: Int[Tensor, "b t"],
        state: StackState,
        attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t v"]:
        """Return the logits after each of these next tokens; `state` remembers those before them."""
        layout = state.place(tokens, None if attention_mask is None else attention_mask.bool())
        check_length(state.length, self.stack, "sequence")
        return self._logits(tokens, layout, state, AuxiliaryLosses())

    def _logits(
        self, tokens: Tensor, layout: Layout, state: StackState | None, auxiliary: AuxiliaryLosses
    ) -> Float[Tensor, "b t v"]:
        context = Context(layout, Mask(causal=True), self.execution, auxiliary=auxiliary)
        return self.lm_head(self.stack(self.embedding(tokens), context, state))  # type: ignore[no-any-return]
