"""GPT: a decoder-only Transformer (GPT-2, Radford et al. 2019).

What GPT-2 changed of the 2017 decoder: no encoder and no cross-attention; learned positions; the norm before each
sub-layer and once more at the end; GELU; biases everywhere; N(0, 0.02²) weights, scaled down where they write to the
residual stream; embeddings not multiplied by √d_model.
"""

from __future__ import annotations

from typing_extensions import Unpack

from ..base.attention import MultiHeadAttentionConfig
from ..base.normalization import LayerNormConfig
from ..base.position import LearnedPositionConfig
from ..base.sockets import Depth, Probability, Size
from ..base.stack import BlockConfig, StackConfig
from ..base.wiring import PreNormConfig
from ..enhancements.feed_forward.gelu import GELUFeedForwardConfig
from ..enhancements.initialization import GPT2Config
from ..enhancements.switches import Switches, apply_switches
from .decoder import DecoderOnly, DecoderOnlyConfig


def gpt(
    vocab_size: int = 50257,
    d_model: Size = 768,
    n_heads: Size = 12,
    n_layers: Depth = 12,
    d_ff: Size | None = None,
    dropout: Probability = 0.1,
    max_seq_len: Size = 1024,
) -> DecoderOnlyConfig:
    """GPT-2 as a config; the defaults are the smallest of the four. d_ff = 4·d_model unless given."""
    block = BlockConfig(
        MultiHeadAttentionConfig(n_heads, dropout=dropout, bias=True),
        GELUFeedForwardConfig(4 * d_model if d_ff is None else d_ff, form="tanh"),
        wiring=PreNormConfig(dropout),
        norm=LayerNormConfig(),
    )
    stack = StackConfig((block,) * n_layers, LearnedPositionConfig(max_seq_len), LayerNormConfig(), dropout)
    return DecoderOnlyConfig(vocab_size, d_model, stack, initialization=GPT2Config())


class GPT(DecoderOnly):
    """GPT-2, with any of the switches; `gpt` gives the meaning of each hyper-parameter."""

    def __init__(
        self,
        vocab_size: int = 50257,
        d_model: int = 768,
        n_heads: int = 12,
        n_layers: int = 12,
        d_ff: int | None = None,
        dropout: float = 0.1,
        max_seq_len: int = 1024,
        **switches: Unpack[Switches],
    ) -> None:
        config = gpt(vocab_size, d_model, n_heads, n_layers, d_ff, dropout, max_seq_len)
        super().__init__(*apply_switches(config, switches))
