"""The Transformer: an encoder, a decoder, and one embedding for both (arXiv 1706.03762 §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .attention import CrossAttentionConfig, MultiHeadAttentionConfig, scaled_dot_product_attention
from .cache import GROWING, Storage
from .embedding import EmbeddingConfig, LinearHeadConfig
from .feed_forward import ReluFeedForwardConfig
from .position import SinusoidalPositionConfig
from .sockets import (
    AuxiliaryLosses,
    Config,
    Context,
    Depth,
    Execution,
    InitializationConfig,
    Layout,
    Mask,
    Memory,
    Probability,
    Size,
)
from .stack import BlockConfig, Stack, StackConfig, StackState, check_length
from .stacked import matrices
from .wiring import PostNormConfig


@dataclass(frozen=True)
class XavierConfig(InitializationConfig):
    """Xavier-uniform matrices, zero biases, and embeddings of unit length: N(0, 1/d_model).

    The paper does not give its first weights; these are those of its authors' own code (tensor2tensor).
    """

    kind: ClassVar[str] = "xavier_uniform"

    def initialize(self, model: nn.Module) -> None:
        """Set the weights of every linear map and embedding in `model`, by type."""
        for module in model.modules():
            if isinstance(module, nn.Linear):
                for matrix in matrices(module):
                    nn.init.xavier_uniform_(matrix)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)


@dataclass(frozen=True)
class EncoderDecoderConfig(Config):
    """An encoder-decoder as data: a tree in which every part can be replaced by another of its socket."""

    kind: ClassVar[str] = "encoder_decoder"
    vocab_size: Annotated[int, Ge(1)]
    d_model: Annotated[int, Ge(1)]
    encoder: StackConfig
    decoder: StackConfig
    embedding: EmbeddingConfig = EmbeddingConfig()
    tie_embeddings: bool = True
    initialization: InitializationConfig = XavierConfig()
    lm_head: LinearHeadConfig = LinearHeadConfig()


class DecodingState:
    """What decoding keeps: the encoder's output, and the state of the decoder's stack."""

    def __init__(self, memory: Memory, stack: StackState) -> None:
        self.memory, self.stack = memory, stack

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order; a row may be repeated."""
        self.memory = Memory(self.memory.hidden[rows], self.memory.layout.rows(rows))
        self.stack.select(rows)

    def truncate(self, ends: Int[Tensor, "b 1"]) -> None:
        """Forget the target tokens of each row that have the number `ends` or a later one, counted from 0."""
        self.stack.truncate(ends)


class EncoderDecoder(nn.Module):
    """Maps a source sequence and the target so far to the logits of the next target tokens.

    One matrix serves as source embedding, target embedding and the map to logits (§3.4), unless
    `tie_embeddings` is false: then the map to logits is its own.
    """

    def __init__(self, config: EncoderDecoderConfig, execution: Execution | None = None) -> None:
        super().__init__()
        self.config = config
        self.execution = execution or Execution(scaled_dot_product_attention)
        self.embedding = config.embedding.build(config.vocab_size, config.d_model)
        self.encoder: Stack = config.encoder.build(config.d_model)
        self.decoder: Stack = config.decoder.build(config.d_model)
        self.lm_head = config.lm_head.build(config.d_model, config.vocab_size)
        config.initialization.initialize(self)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        source: Int[Tensor, "b s"],
        target: Int[Tensor, "b t"],
        source_mask: Bool[Tensor, "b s"] | Int[Tensor, "b s"] | None = None,
        *,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Float[Tensor, "b t v"]:
        """Return the logits after each token of `target`, the decoder's input, which begins with a start token.

        `source_mask` is True (or 1) at real tokens. The target is padded on the right, so needs none: the causal
        mask hides the padding. Parts that add to the objective put their losses into `auxiliary`.
        """
        auxiliary = auxiliary or AuxiliaryLosses()
        memory = self.encode(source, source_mask, auxiliary=auxiliary)
        return self._decode(target, memory, Layout.of(target), None, auxiliary)

    def encode(
        self,
        source: Int[Tensor, "b s"],
        source_mask: Bool[Tensor, "b s"] | Int[Tensor, "b s"] | None = None,
        *,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Memory:
        """Run the encoder."""
        layout = Layout.of(source, None if source_mask is None else source_mask.bool())
        check_length(source.shape[1], self.encoder, "source")
        context = Context(layout, Mask(), self.execution, auxiliary=auxiliary or AuxiliaryLosses())
        return Memory(self.encoder(self.embedding(source), context), layout)

    def initial_state(self, memory: Memory, storage: Storage = GROWING) -> DecodingState:
        """The state with which decoding begins; `storage` says how it is kept."""
        return DecodingState(memory, self.decoder.initial_state(storage))

    def decode(self, target: Int[Tensor, "b t"], state: DecodingState) -> Float[Tensor, "b t v"]:
        """Return the logits after each of these next tokens; `state` remembers those before them."""
        layout = state.stack.place(target, None)
        return self._decode(target, state.memory, layout, state.stack, AuxiliaryLosses())

    def _decode(
        self,
        target: Tensor,
        memory: Memory,
        layout: Layout,
        state: StackState | None,
        auxiliary: AuxiliaryLosses,
    ) -> Float[Tensor, "b t v"]:
        check_length(target.shape[1] if state is None else state.length, self.decoder, "target")
        context = Context(layout, Mask(causal=True), self.execution, memory=memory, auxiliary=auxiliary)
        return self.lm_head(self.decoder(self.embedding(target), context, state))  # type: ignore[no-any-return]


def transformer(
    vocab_size: int = 10000,
    d_model: Size = 512,
    n_heads: Size = 8,
    n_layers: Depth = 6,
    d_ff: Size | None = None,
    dropout: Probability = 0.1,
    max_seq_len: Size = 1024,
) -> EncoderDecoderConfig:
    """The paper's architecture as a config: `n_layers` blocks on each side, and d_ff = 4·d_model unless given.

    The base model is (d_model 512, 8 heads, 6 layers, d_ff 2048, dropout 0.1); the big one is
    (1024, 16, 6, 4096, 0.3 for English-German) (§5.4 and table 3).
    """
    feed_forward = ReluFeedForwardConfig(d_model * 4 if d_ff is None else d_ff)
    attention, cross_attention = MultiHeadAttentionConfig(n_heads), CrossAttentionConfig(n_heads)
    wiring, position = PostNormConfig(dropout), SinusoidalPositionConfig(max_seq_len)
    encoder = BlockConfig(attention, feed_forward, wiring=wiring)
    decoder = BlockConfig(attention, feed_forward, cross_attention, wiring=wiring)
    return EncoderDecoderConfig(
        vocab_size,
        d_model,
        encoder=StackConfig((encoder,) * n_layers, position, dropout=dropout),
        decoder=StackConfig((decoder,) * n_layers, position, dropout=dropout),
    )


class Transformer(EncoderDecoder):
    """The 2017 Transformer, exactly as published; `transformer` gives the meaning of each hyper-parameter."""

    def __init__(
        self,
        vocab_size: int = 10000,
        d_model: int = 512,
        n_heads: int = 8,
        n_layers: int = 6,
        d_ff: int | None = None,
        dropout: float = 0.1,
        max_seq_len: int = 1024,
    ) -> None:
        super().__init__(transformer(vocab_size, d_model, n_heads, n_layers, d_ff, dropout, max_seq_len))
