"""RecurrentGemma: Griffin with Gemma's parts around it (arXiv 2404.07839; Griffin: De et al. 2024, arXiv 2402.19427).

Of every three layers two mix tokens by a gated linear recurrence and one by attention to a window of 2,048 tokens, all
heads of which share their keys and values. Decoding keeps a state of one size, however long the text. As in Gemma: a
GELU gate in its tanh form, here with biases; RMSNorm with the gain 1 + g; embeddings times √d_model, tied to the map to
logits, which are capped at 30. Half of each head is turned by rotary positions; the recurrence knows order by itself.

The embeddings' factor is √d_model as bfloat16 has it: 50.5 for 2560, where the root is 50.596. First weights are
GPT-2's, whose N(0, 0.02²) is about N(0, 1/d_model) at this width; those of the recurrence are its own.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, MinLen

from ..base.sockets import Depth, MixerConfig, Size
from ..base.stack import BlockConfig, StackConfig
from ..base.wiring import PreNormConfig
from ..enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from ..enhancements.embedding import NormedEmbeddingConfig
from ..enhancements.feed_forward.glu import GatedFeedForwardConfig
from ..enhancements.initialization import GPT2Config
from ..enhancements.normalization.unit_offset_rms_norm import UnitOffsetRMSNormConfig
from ..enhancements.position.rope import RotaryPositionConfig
from ..enhancements.ssm.rg_lru import RGLRUConfig
from .decoder import DecoderOnlyConfig
from .head import HeadConfig

GRIFFIN: tuple[str, ...] = ("rg_lru", "rg_lru", "window")
"""The mixers of every three layers, by the names that a hybrid calls them."""


def rounded_root(d_model: int) -> float:
    """√d_model as bfloat16 has it, by which the published model multiplies its embeddings in any precision."""
    return float(torch.tensor(d_model**0.5, dtype=torch.bfloat16, device="cpu"))


def recurrent_gemma(
    vocab_size: int = 256000,
    d_model: Size = 2560,
    n_heads: Size = 10,
    n_layers: Depth = 26,
    n_kv_heads: Annotated[int, Ge(1)] | None = 1,
    d_ff: Size = 7680,
    d_inner: Size | None = None,
    window: Size = 2048,
    layers: Annotated[tuple[str, ...], MinLen(1)] = GRIFFIN,
) -> DecoderOnlyConfig:
    """RecurrentGemma as a config; the defaults are the published model of 2 billion parameters besides the embedding.

    n_kv_heads: null is as many as `n_heads`. d_inner: of the recurrence; null is d_model. layers: `rg_lru` or `window`,
    repeated until there are `n_layers`; `("rg_lru",)` is the paper's Hawk. Raises `ValueError` for another name.
    """
    mixers: dict[str, MixerConfig] = {
        "rg_lru": RGLRUConfig(d_inner, n_heads),
        "window": SlidingWindowAttentionConfig(n_heads, n_kv_heads, out_bias=True, window=window),
    }
    if unknown := [name for name in layers if name not in mixers]:
        raise ValueError(
            f"layers has {unknown[0]!r}, and RecurrentGemma has rg_lru and window; hybrid() has others"
        )
    norm, feed_forward = UnitOffsetRMSNormConfig(1e-6), GatedFeedForwardConfig(d_ff, 0.0, True, "gelu_tanh")
    blocks = tuple(
        BlockConfig(mixers[layers[i % len(layers)]], feed_forward, wiring=PreNormConfig(0.0), norm=norm)
        for i in range(n_layers)
    )
    return DecoderOnlyConfig(
        vocab_size,
        d_model,
        StackConfig(blocks, RotaryPositionConfig(fraction=0.5), norm, 0.0),
        NormedEmbeddingConfig(multiplier=rounded_root(d_model)),
        initialization=GPT2Config(),
        lm_head=HeadConfig(soft_cap=30.0),
    )
