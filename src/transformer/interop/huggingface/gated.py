"""Grouped attention and a gated feed-forward network under LLaMA's names, for the families that wire them otherwise.

Gemma, OLMo and Granite call their parts as LLaMA does; what differs is which norms a block has and where they stand
(`PRE`, `SANDWICH`, `AFTER`, `NONE`), the numbers that things are multiplied by, and the attributes that say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ...base.normalization import NoNormConfig
from ...base.stack import BlockConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.position.rope import RotaryPositionConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .family import require
from .weights import Rule, linear, same

Norms = Mapping[str, str]
NONE: Norms = MappingProxyType({})
PRE: Norms = MappingProxyType(
    {"input_layernorm": "mixer.norm", "post_attention_layernorm": "feed_forward.norm"}
)
AFTER: Norms = MappingProxyType(
    {"post_attention_layernorm": "mixer.norm", "post_feedforward_layernorm": "feed_forward.norm"}
)
SANDWICH: Norms = MappingProxyType(
    {
        "input_layernorm": "mixer.norm",
        "post_attention_layernorm": "mixer.output_norm",
        "pre_feedforward_layernorm": "feed_forward.norm",
        "post_feedforward_layernorm": "feed_forward.output_norm",
    }
)
"""Their norms of a layer, and ours: before the branches, after them, or both; `NONE` have weights."""


def read_attention(
    attributes: Attributes,
    d_model: int,
    windows: Sequence[int | None],
    settings: Mapping[str, Any],
    d_head: int | None = None,
) -> list[GroupedQueryAttentionConfig]:
    """Return the attention of each layer; null is a layer without a window.

    settings: of the attention, besides those that these families share. d_head: if no attribute says it.
    """
    n_heads = attributes.take("num_attention_heads", int)
    kv = attributes.take("num_key_value_heads", int, n_heads)
    width = attributes.take("head_dim", int, d_head or d_model // max(1, n_heads))
    common: dict[str, Any] = {
        "n_heads": n_heads,
        "n_kv_heads": None if kv == n_heads else kv,
        "d_head": None if width * n_heads == d_model else width,
        "dropout": attributes.take("attention_dropout", float, 0.0),
        "bias": attributes.take("attention_bias", bool, False),
        **settings,
    }
    return [
        GroupedQueryAttentionConfig(**common)
        if window is None
        else SlidingWindowAttentionConfig(**common, window=window)
        for window in windows
    ]


def write_attention(config: DecoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that these families share; `OtherFamilyError` where a config has other parts."""
    _, feed_forward = parts_of(config.stack.blocks[0])
    return {**grouped_attributes(config), "intermediate_size": feed_forward.d_ff}


def grouped_attributes(config: DecoderOnlyConfig) -> dict[str, Any]:
    """Return those that do not depend on the feed-forward network."""
    stack, block = config.stack, config.stack.blocks[0]
    position: Any = stack.position
    require(isinstance(position, RotaryPositionConfig), "its positions are not rotary")
    require(isinstance(block, BlockConfig), "its blocks are not attention and feed-forward")
    mixer: Any = getattr(block, "mixer", None)
    require(isinstance(mixer, GroupedQueryAttentionConfig), "its mixer is not attention by grouped heads")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(stack.blocks),
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_kv_heads or mixer.n_heads,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": mixer.dropout,
        "attention_bias": mixer.bias,
        "max_position_embeddings": position.max_seq_len or 2048,
    }


def parts_of(block: Any) -> tuple[GroupedQueryAttentionConfig, GatedFeedForwardConfig]:
    """Return the attention and the network of a block; `OtherFamilyError` where it has others."""
    mixer, feed_forward = getattr(block, "mixer", None), getattr(block, "feed_forward", None)
    require(isinstance(mixer, GroupedQueryAttentionConfig), "its mixer is not attention by grouped heads")
    require(isinstance(feed_forward, GatedFeedForwardConfig), "its feed-forward network is not gated")
    assert isinstance(mixer, GroupedQueryAttentionConfig)
    assert isinstance(feed_forward, GatedFeedForwardConfig)
    return mixer, feed_forward


def attention_rules(mixer: GroupedQueryAttentionConfig, theirs: str, ours: str) -> list[Rule]:
    """How the weights of attention are called."""
    out_bias = mixer.bias if mixer.out_bias is None else mixer.out_bias
    found = linear(f"{theirs}.o_proj", f"{ours}.out_proj", out_bias)
    for name in "qkv":
        found += linear(f"{theirs}.{name}_proj", f"{ours}.{name}_proj", mixer.bias)
    if not isinstance(mixer.qk_norm, NoNormConfig):
        inner = ".norm" if mixer.qk_norm_over == "projection" else ""
        for name in ("q_norm", "k_norm"):
            found += linear(f"{theirs}.{name}", f"{ours}.{name}{inner}")
    if mixer.sinks:
        found.append(same(f"{theirs}.sinks", f"{ours}.sinks"))
    return found


def rules(config: DecoderOnlyConfig, norms: Norms) -> Sequence[Rule]:
    """How the weights are called; `norms` are those of a layer."""
    found = [same("model.embed_tokens.weight", "embedding.weight")]
    for layer, block in enumerate(config.stack.blocks):
        mixer, feed_forward = parts_of(block)
        theirs, ours = f"model.layers.{layer}", f"stack.blocks.{layer}"
        found += attention_rules(mixer, f"{theirs}.self_attn", f"{ours}.mixer.branch")
        for name in ("gate_proj", "up_proj", "down_proj"):
            found += linear(f"{theirs}.mlp.{name}", f"{ours}.feed_forward.branch.{name}", feed_forward.bias)
        for name, path in norms.items():
            found += linear(f"{theirs}.{name}", f"{ours}.{path}")
    if norms:
        found += linear("model.norm", "stack.norm")
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found
