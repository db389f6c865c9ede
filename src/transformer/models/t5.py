"""T5: an encoder-decoder for text-to-text tasks (Raffel et al. 2019, arXiv 1910.10683 §2.1; v1.1, its released code).

What T5 changed of the 2017 Transformer: RMSNorm before each sub-layer and once more at the end of each stack; no biases
anywhere; a learned bias for each bucket of relative positions, one table for a stack, instead of position encodings;
attention without the factor 1/√e, whose heads may be of any width; embeddings that are not multiplied by √d_model and
have unit variance; hidden states multiplied by 1/√d_model before the tied map to logits; dropout also on attention's
weights, inside the feed-forward network and at the end of each stack. A decoder begins with the padding token.

Version 1.1 has a feed-forward network gated by GELU (arXiv 2002.05202) and a map to logits of its own, not scaled.
mT5 (arXiv 2010.11934), ByT5 (arXiv 2105.13626) and Flan-T5 (arXiv 2210.11416) are version 1.1 with other sizes or data.
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from ..base.embedding import EmbeddingConfig
from ..base.feed_forward import ReluFeedForwardConfig
from ..base.sockets import Depth, FeedForwardConfig, Probability, Size
from ..base.stack import BlockConfig
from ..base.transformer import EncoderDecoder, EncoderDecoderConfig
from ..base.wiring import PreNormConfig
from ..enhancements.architecture.output_dropout import OutputDropoutStackConfig
from ..enhancements.attention.free_cross import FreeCrossAttentionConfig
from ..enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ..enhancements.feed_forward.glu import GatedFeedForwardConfig
from ..enhancements.initialization import FanInConfig
from ..enhancements.normalization.rms_norm import RMSNormConfig
from ..enhancements.position.t5_bias import T5BiasConfig
from ..enhancements.switches import Switches, apply_switches
from .head import HeadConfig

Version = Literal["1.0", "1.1"]


def t5(
    vocab_size: int = 32128,
    d_model: Size = 768,
    n_heads: Size = 12,
    n_layers: Depth = 12,
    d_head: Size | None = None,
    d_ff: Size | None = None,
    dropout: Probability = 0.1,
    version: Version = "1.0",
) -> EncoderDecoderConfig:
    """T5 as a config, `n_layers` blocks on each side; the defaults are the base model of the paper.

    d_head: null is d_model / n_heads, which must then be whole. d_ff: null is 4·d_model, and two thirds of that in
    version 1.1. Published: T5 small (32128, 512, 8, 6), v1.1 base (d_ff=2048), v1.1 small
    (32128, 512, 6, 8, d_head=64, d_ff=1024), mT5 small the same with 250112 tokens; v1.1 was trained without dropout.
    """
    d_head = _width(d_model, n_heads) if d_head is None else d_head
    feed_forward: FeedForwardConfig = ReluFeedForwardConfig(d_ff or 4 * d_model, dropout, bias=False)
    if version == "1.1":
        feed_forward = GatedFeedForwardConfig(d_ff or 8 * d_model // 3, dropout, activation="gelu_tanh")
    attention = GroupedQueryAttentionConfig(n_heads, d_head=d_head, dropout=dropout, scale=1.0)
    crossed = FreeCrossAttentionConfig(n_heads, dropout, d_head=d_head, scale=1.0)
    wiring, norm = PreNormConfig(dropout), RMSNormConfig(1e-6)
    encoder = BlockConfig(attention, feed_forward, wiring=wiring, norm=norm)
    decoder = BlockConfig(attention, feed_forward, crossed, wiring=wiring, norm=norm)
    both_ways, causal = T5BiasConfig(n_heads, "bidirectional"), T5BiasConfig(n_heads, "causal")
    tied = version == "1.0"
    return EncoderDecoderConfig(
        vocab_size,
        d_model,
        encoder=OutputDropoutStackConfig((encoder,) * n_layers, both_ways, norm, dropout, dropout),
        decoder=OutputDropoutStackConfig((decoder,) * n_layers, causal, norm, dropout, dropout),
        embedding=EmbeddingConfig(scaled=False),
        tie_embeddings=tied,
        initialization=FanInConfig(),
        lm_head=HeadConfig(scale=d_model**-0.5) if tied else HeadConfig(),
    )


def _width(d_model: int, n_heads: int) -> int:
    """The width of a head that is not given; ValueError where the model's cannot be split evenly."""
    return GroupedQueryAttentionConfig(n_heads).head_width(d_model)


class T5(EncoderDecoder):
    """T5, with any of the switches; `t5` gives the meaning of each hyper-parameter."""

    def __init__(
        self,
        vocab_size: int = 32128,
        d_model: int = 768,
        n_heads: int = 12,
        n_layers: int = 12,
        d_head: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.1,
        version: Version = "1.0",
        **switches: Unpack[Switches],
    ) -> None:
        config = t5(vocab_size, d_model, n_heads, n_layers, d_head, d_ff, dropout, version)
        super().__init__(*apply_switches(config, switches))
