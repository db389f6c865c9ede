"""PaLM: a decoder-only Transformer (Chowdhery et al. 2022, arXiv 2204.02311 §2).

    x ← x + MQA(LN x) + SwiGLU(LN x),      logits = E · LN x / √d

What PaLM changed of GPT: attention and feed-forward side by side under one norm; one head of keys and values for all
queries; SwiGLU; rotary positions; no biases, in maps or norms; embeddings N(0, 1), used again as the map to logits,
which are scaled by 1/√d_model for that; other weights N(0, 1/n) for n inputs (§5). `d_ff` is 4·d_model.

The paper does not say, and this is what stands here: the norm at the end, which every pre-norm model has; ε = 1e-5; a
rotary base of 10,000, pairs being halves of a head. Its loss on the size of the softmax's sum, and its optimizer, are
not part of the model.
"""

from __future__ import annotations

from ..base.embedding import EmbeddingConfig
from ..base.sockets import Depth, Probability, Size
from ..base.stack import BlockConfig, StackConfig
from ..base.wiring import PreNormConfig
from ..enhancements.architecture.parallel import ParallelConfig
from ..enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ..enhancements.feed_forward.glu import GatedFeedForwardConfig
from ..enhancements.initialization import FanInConfig
from ..enhancements.normalization.bias_free_layer_norm import BiasFreeLayerNormConfig
from ..enhancements.position.rope import RotaryPositionConfig
from .decoder import DecoderOnlyConfig
from .head import HeadConfig


def palm(
    vocab_size: int = 256000,
    d_model: Size = 4096,
    n_heads: Size = 16,
    n_layers: Depth = 32,
    d_head: Size | None = None,
    d_ff: Size | None = None,
    dropout: Probability = 0.0,
    max_seq_len: Size = 2048,
) -> DecoderOnlyConfig:
    """PaLM as a config; the defaults are the model of 8 billion parameters.

    d_head: null is d_model / n_heads. d_ff: null is 4·d_model. PaLM 540B: (256000, 18432, 48, 118, d_head=256).
    """
    norm = BiasFreeLayerNormConfig()
    pair = ParallelConfig(
        GroupedQueryAttentionConfig(n_heads, 1, d_head, dropout=dropout),
        GatedFeedForwardConfig(4 * d_model if d_ff is None else d_ff),
    )
    block = BlockConfig(pair, None, wiring=PreNormConfig(dropout), norm=norm)
    position = RotaryPositionConfig(max_seq_len=max_seq_len)
    return DecoderOnlyConfig(
        vocab_size,
        d_model,
        StackConfig((block,) * n_layers, position, norm, dropout),
        EmbeddingConfig(scaled=False),
        tie_embeddings=True,
        initialization=FanInConfig(),
        lm_head=HeadConfig(scale=d_model**-0.5),
    )
