"""LLaMA: a decoder-only Transformer (Touvron et al. 2023, arXiv 2302.13971 §2.2; 2307.09288; 2407.21783).

What LLaMA changed of GPT: RMSNorm instead of LayerNorm; rotary positions instead of learned ones; SwiGLU instead of
GELU, at about the same number of parameters; no biases; a map to logits of its own; from Llama 2 70B on, fewer heads
of keys and values; in Llama 3, a base of 500,000 for the rotary frequencies. `enhance(gpt(...), ...)` with these is
equal to `llama(...)`, which a test holds.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from typing_extensions import Unpack

from ..base.sockets import Depth, Probability, Size
from ..base.stack import BlockConfig, StackConfig
from ..base.wiring import PreNormConfig
from ..enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ..enhancements.feed_forward.glu import GatedFeedForwardConfig, llama_width
from ..enhancements.initialization import GPT2Config
from ..enhancements.normalization.rms_norm import RMSNormConfig
from ..enhancements.position.rope import RotaryPositionConfig
from ..enhancements.switches import Switches, apply_switches
from .decoder import DecoderOnly, DecoderOnlyConfig


def llama(
    vocab_size: int = 32000,
    d_model: Size = 4096,
    n_heads: Size = 32,
    n_layers: Depth = 32,
    n_kv_heads: Annotated[int, Ge(1)] | None = None,
    d_ff: Size | None = None,
    dropout: Probability = 0.0,
    max_seq_len: Size = 2048,
    rope_base: Annotated[float, Gt(1)] = 10000.0,
    tie_embeddings: bool = False,
) -> DecoderOnlyConfig:
    """LLaMA as a config; the defaults are the 7-billion-parameter model of 2023.

    n_kv_heads: null is as many as `n_heads`. d_ff: null is LLaMA's rule, ⅔ of 4·d_model up to a multiple of 256.
    Llama 3 8B: (128256, 4096, 32, 32, n_kv_heads=8, d_ff=14336, max_seq_len=8192, rope_base=500000).
    """
    norm = RMSNormConfig(1e-5)
    block = BlockConfig(
        GroupedQueryAttentionConfig(n_heads, n_kv_heads, dropout=dropout),
        GatedFeedForwardConfig(llama_width(d_model) if d_ff is None else d_ff),
        wiring=PreNormConfig(dropout),
        norm=norm,
    )
    position = RotaryPositionConfig(rope_base, max_seq_len=max_seq_len)
    stack = StackConfig((block,) * n_layers, position, norm, dropout)
    return DecoderOnlyConfig(
        vocab_size, d_model, stack, tie_embeddings=tie_embeddings, initialization=GPT2Config()
    )


class LLaMA(DecoderOnly):
    """LLaMA, with any of the switches; `llama` gives the meaning of each hyper-parameter."""

    def __init__(
        self,
        vocab_size: int = 32000,
        d_model: int = 4096,
        n_heads: int = 32,
        n_layers: int = 32,
        n_kv_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.0,
        max_seq_len: int = 2048,
        rope_base: float = 10000.0,
        tie_embeddings: bool = False,
        **switches: Unpack[Switches],
    ) -> None:
        config = llama(
            vocab_size, d_model, n_heads, n_layers, n_kv_heads, d_ff, dropout, max_seq_len, rope_base, tie_embeddings
        )  # fmt: skip
        super().__init__(*apply_switches(config, switches))
