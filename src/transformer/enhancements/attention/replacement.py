"""How another mixer takes the place of softmax self-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, TypeVar

from ...base.attention import MultiHeadAttentionConfig
from ...base.sockets import Config, Enhancement, MixerConfig
from ...base.transformer import EncoderDecoderConfig
from ..compose import replace_parts
from .grouped_query import GroupedQueryAttentionConfig

C = TypeVar("C", bound=Config)
Attention: TypeAlias = MultiHeadAttentionConfig | GroupedQueryAttentionConfig


def replace_attention(new: Callable[[Attention], MixerConfig]) -> Enhancement:
    """Put `new(attention)` in the place of every multi-head and grouped-query self-attention.

    Cross-attention stays, and so do other kinds of attention, such as sliding windows: a model of both is a hybrid.
    """

    def change(part: Attention) -> MixerConfig:
        return new(part) if type(part) in (MultiHeadAttentionConfig, GroupedQueryAttentionConfig) else part

    def apply(config: C) -> C:
        changed = replace_parts(config, MultiHeadAttentionConfig, change)
        return replace_parts(changed, GroupedQueryAttentionConfig, change)

    return apply


def replace_causal_attention(new: Callable[[Attention], MixerConfig]) -> Enhancement:
    """The same everywhere but in an encoder, for a mixer that reads from left to right."""
    everywhere = replace_attention(new)

    def apply(config: C) -> C:
        if isinstance(config, EncoderDecoderConfig):
            return replace(config, decoder=everywhere(config.decoder))
        if config.kind == "encoder_only":
            raise ValueError(
                "this kind of attention reads from left to right, and an encoder reads both ways; "
                "choose linear_attention() or performer(), or a model that writes text"
            )
        return everywhere(config)  # type: ignore[no-any-return]

    return apply


def head_width(d_model: int, n_heads: int) -> int:
    """Return d_model / n_heads; ValueError if the model's width cannot be split evenly."""
    if d_model % n_heads:
        fitting = [n for n in range(1, d_model + 1) if d_model % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - n_heads))
        raise ValueError(
            f"d_model {d_model} cannot be split into n_heads {n_heads} equal heads; "
            f"the nearest n_heads that divides it is {nearest}"
        )
    return d_model // n_heads
