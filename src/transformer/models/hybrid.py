"""Hybrids: stacks whose layers mix tokens in different ways, each followed by a feed-forward network.

A tuple of names is repeated over the depth: `("mamba", "attention")` alternates the two. Published ones:

- Samba (arXiv 2406.07522): Mamba and attention to a window in turn, with rotary positions;
- Jamba (arXiv 2403.19887): one attention layer in eight, the others Mamba with norms on Δ, B and C; no positions; in
  every other layer 16 experts, of which each token uses two;
- RetNet (arXiv 2307.08621): `("retention",)`.

Every name is a part of the catalog, and any other mixture is a tuple of `BlockConfig`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from ..base.embedding import EmbeddingConfig
from ..base.position import NoPositionConfig
from ..base.sockets import (
    Depth,
    FeedForwardConfig,
    InitializationConfig,
    MixerConfig,
    PositionConfig,
    Probability,
    Size,
)
from ..base.stack import BlockConfig, StackConfig
from ..base.wiring import PreNormConfig
from ..enhancements.architecture.moe.losses import BalanceLossConfig
from ..enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from ..enhancements.architecture.moe.softmax import SoftmaxBeforeTopKConfig
from ..enhancements.attention.delta_net import DeltaNetConfig
from ..enhancements.attention.gated_delta_net import GatedDeltaNetConfig
from ..enhancements.attention.gated_linear import GatedLinearAttentionConfig
from ..enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ..enhancements.attention.linear import LinearAttentionConfig
from ..enhancements.attention.retention import RetentionConfig
from ..enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from ..enhancements.feed_forward.glu import GatedFeedForwardConfig, llama_width
from ..enhancements.initialization import GPT2Config
from ..enhancements.normalization.rms_norm import RMSNormConfig
from ..enhancements.position.rope import RotaryPositionConfig
from ..enhancements.ssm.initialization import MambaInitializationConfig
from ..enhancements.ssm.mamba import MambaConfig
from ..enhancements.ssm.mamba2 import Mamba2Config
from ..enhancements.ssm.rg_lru import RGLRUConfig
from ..enhancements.ssm.s4d import S4DConfig
from ..utils.codec import suggest
from .decoder import DecoderOnlyConfig

JAMBA: tuple[str, ...] = ("mamba",) * 4 + ("attention",) + ("mamba",) * 3
SAMBA: tuple[str, ...] = ("mamba", "window")


@dataclass(frozen=True)
class _Sizes:
    """What the mixers of one stack have in common."""

    n_heads: int
    n_kv_heads: int | None
    window: int
    dropout: float


MIXERS: Mapping[str, Callable[[_Sizes], MixerConfig]] = MappingProxyType(
    {
        "attention": lambda s: GroupedQueryAttentionConfig(s.n_heads, s.n_kv_heads, dropout=s.dropout),
        "window": lambda s: SlidingWindowAttentionConfig(
            s.n_heads, s.n_kv_heads, dropout=s.dropout, window=s.window
        ),
        "mamba": lambda s: MambaConfig(),
        "mamba2": lambda s: Mamba2Config(),
        "s4d": lambda s: S4DConfig(),
        "rg_lru": lambda s: RGLRUConfig(n_heads=s.n_heads),
        "linear_attention": lambda s: LinearAttentionConfig(s.n_heads),
        "retention": lambda s: RetentionConfig(s.n_heads),
        "gated_linear_attention": lambda s: GatedLinearAttentionConfig(s.n_heads),
        "delta_net": lambda s: DeltaNetConfig(s.n_heads),
        "gated_delta_net": lambda s: GatedDeltaNetConfig(s.n_heads),
    }
)
"""The mixers by the names that a hybrid calls them."""

INITIALIZATIONS: Mapping[str, InitializationConfig] = MappingProxyType(
    {"gpt2": GPT2Config(), "mamba": MambaInitializationConfig()}
)
"""The first weights by the names that a hybrid calls them."""


def hybrid(
    vocab_size: int = 32000,
    d_model: Size = 768,
    n_heads: Size = 12,
    n_layers: Depth = 12,
    layers: Annotated[tuple[str, ...], MinLen(1)] = ("mamba", "attention"),
    n_kv_heads: Annotated[int, Ge(1)] | None = None,
    d_ff: Annotated[int, Ge(0), Le(2**20)] | None = None,
    window: Size = 2048,
    rope_base: Annotated[float, Gt(1)] | None = None,
    dropout: Probability = 0.0,
    tie_embeddings: bool = True,
    initialization: Literal["gpt2", "mamba"] = "gpt2",
) -> DecoderOnlyConfig:
    """A decoder-only stack of any mixers as a config.

    layers: names of mixers, repeated until there are `n_layers`. d_ff: null is LLaMA's rule, and 0 leaves the
    feed-forward networks out. rope_base: null is no position scheme, which a stack with recurrent layers can do
    without. initialization: N(0, 0.02²) as in GPT-2, or within ±1/√inputs as in Mamba. Raises `ValueError` for an
    unknown name.
    """
    for name in layers:
        if name not in MIXERS:
            near = suggest(name, MIXERS) or f"; there are {', '.join(MIXERS)}"
            raise ValueError(f"layers has {name!r}, which is no mixer of a hybrid{near}")
    sizes, norm = _Sizes(n_heads, n_kv_heads, window, dropout), RMSNormConfig(1e-5)
    width = llama_width(d_model) if d_ff is None else d_ff
    feed_forward = GatedFeedForwardConfig(width) if width else None
    blocks = tuple(
        BlockConfig(
            MIXERS[layers[i % len(layers)]](sizes), feed_forward, wiring=PreNormConfig(dropout), norm=norm
        )
        for i in range(n_layers)
    )
    position: PositionConfig = NoPositionConfig() if rope_base is None else RotaryPositionConfig(rope_base)
    return DecoderOnlyConfig(
        vocab_size,
        d_model,
        StackConfig(blocks, position, norm, dropout),
        EmbeddingConfig(scaled=False),
        tie_embeddings=tie_embeddings,
        initialization=INITIALIZATIONS[initialization],
    )


def samba(
    vocab_size: int = 32000,
    d_model: Size = 1536,
    n_heads: Size = 12,
    n_layers: Depth = 24,
    window: Size = 2048,
) -> DecoderOnlyConfig:
    """Samba as a config: Mamba and windowed attention in turn, each with a SwiGLU network."""
    return hybrid(vocab_size, d_model, n_heads, n_layers, SAMBA, window=window, rope_base=10000.0)


def jamba(
    vocab_size: int = 65536,
    d_model: Size = 4096,
    n_heads: Size = 32,
    n_layers: Depth = 32,
    n_kv_heads: Annotated[int, Ge(1)] | None = 8,
    d_ff: Size | None = 14336,
    n_experts: Size = 16,
    experts_per_token: Size = 2,
) -> DecoderOnlyConfig:
    """Jamba as a config; the defaults are the published model of 52 billion parameters."""
    config = hybrid(vocab_size, d_model, n_heads, n_layers, JAMBA, n_kv_heads, d_ff, tie_embeddings=False)
    inner = MambaConfig(inner_norm=RMSNormConfig(1e-6))
    blocks = []
    for number, block in enumerate(config.stack.blocks):
        assert isinstance(block, BlockConfig) and block.feed_forward is not None
        mixer = inner if isinstance(block.mixer, MambaConfig) else block.mixer
        feed_forward: FeedForwardConfig = block.feed_forward
        if number % 2:
            router = SoftmaxBeforeTopKConfig(experts_per_token)
            losses = (BalanceLossConfig(0.001),)
            feed_forward = MixtureOfExpertsConfig(n_experts, feed_forward, router, losses=losses)
        blocks.append(replace(block, mixer=mixer, feed_forward=feed_forward, norm=RMSNormConfig(1e-6)))
    stack = replace(config.stack, blocks=tuple(blocks), norm=RMSNormConfig(1e-6))
    return replace(config, stack=stack)
