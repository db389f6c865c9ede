"""BERT: an encoder-only Transformer (Devlin et al. 2018, arXiv 1810.04805).

What BERT changed of the 2017 encoder: it stands alone and predicts tokens that were masked; learned positions; a
learned vector for each of two segments; a norm and dropout on the sum of the three; GELU, in its exact form; biases
everywhere; dropout on the attention's weights too; norms with ε = 10⁻¹²; weights from a normal distribution truncated
at two standard deviations of 0.02. The norm still stands after each addition. A pooler gives one vector for a whole
sequence.
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from ..base.attention import MultiHeadAttentionConfig
from ..base.normalization import LayerNormConfig
from ..base.position import LearnedPositionConfig
from ..base.sockets import Depth, Probability, Size
from ..base.stack import BlockConfig
from ..base.wiring import PostNormConfig
from ..enhancements.architecture.bert_input import NormedInputStackConfig, SegmentedEmbeddingConfig
from ..enhancements.feed_forward.gelu import GELUFeedForwardConfig
from ..enhancements.initialization import TruncatedNormalConfig
from ..enhancements.switches import Switches, apply_switches
from .encoder_only import EncoderOnly, EncoderOnlyConfig
from .masked_head import MaskedHeadConfig
from .pooler import MeanPoolerConfig, PoolerConfig


def bert(
    vocab_size: int = 30522,
    d_model: Size = 768,
    n_heads: Size = 12,
    n_layers: Depth = 12,
    d_ff: Size | None = None,
    dropout: Probability = 0.1,
    max_seq_len: Size = 512,
    n_segments: Size = 2,
    pooling: Literal["first", "mean"] = "first",
) -> EncoderOnlyConfig:
    """BERT as a config; the defaults are BERT base. d_ff = 4·d_model unless given.

    pooling: what a sequence's vector is made of: its first token, as published, or the mean of all.

    BERT large: (30522, 1024, 16, 24).
    """
    norm = LayerNormConfig(1e-12)
    block = BlockConfig(
        MultiHeadAttentionConfig(n_heads, dropout, bias=True),
        GELUFeedForwardConfig(4 * d_model if d_ff is None else d_ff),
        wiring=PostNormConfig(dropout),
        norm=norm,
    )
    position = LearnedPositionConfig(max_seq_len)
    stack = NormedInputStackConfig((block,) * n_layers, position, dropout=dropout, input_norm=norm)
    return EncoderOnlyConfig(
        vocab_size,
        d_model,
        stack,
        SegmentedEmbeddingConfig(n_segments=n_segments),
        initialization=TruncatedNormalConfig(),
        lm_head=MaskedHeadConfig(norm),
        pooler=PoolerConfig() if pooling == "first" else MeanPoolerConfig(),
    )


class BERT(EncoderOnly):
    """BERT, with any of the switches; `bert` gives the meaning of each hyper-parameter."""

    def __init__(
        self,
        vocab_size: int = 30522,
        d_model: int = 768,
        n_heads: int = 12,
        n_layers: int = 12,
        d_ff: int | None = None,
        dropout: float = 0.1,
        max_seq_len: int = 512,
        n_segments: int = 2,
        pooling: Literal["first", "mean"] = "first",
        **switches: Unpack[Switches],
    ) -> None:
        config = bert(vocab_size, d_model, n_heads, n_layers, d_ff, dropout, max_seq_len, n_segments, pooling)
        super().__init__(*apply_switches(config, switches))
