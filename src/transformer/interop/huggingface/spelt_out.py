"""Configs that say the same model: a width or a number of heads may be null, or what null stands for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.compose import replace_parts
from ...enhancements.ssm.mamba import MambaConfig
from ...enhancements.ssm.mamba2 import Mamba2Config
from ...models import DecoderOnlyConfig, ModelConfig

M = TypeVar("M", bound=ModelConfig)


def spelt_out(config: M) -> M:
    """Return the config of a decoder with every null of its mixers replaced by what it stands for; others as they are.

    Two that are equal then have the same weights and compute the same.
    """
    if not isinstance(config, DecoderOnlyConfig):
        return config
    width = config.d_model

    def attention(part: GroupedQueryAttentionConfig) -> GroupedQueryAttentionConfig:
        return replace(
            part,
            n_kv_heads=part.n_kv_heads or part.n_heads,
            d_head=part.head_width(width),
            out_bias=part.bias if part.out_bias is None else part.out_bias,
        )

    def mamba(part: MambaConfig) -> MambaConfig:
        return replace(part, d_inner=part.d_inner or 2 * width, dt_rank=part.dt_rank or math.ceil(width / 16))

    def mamba2(part: Mamba2Config) -> Mamba2Config:
        return replace(part, d_inner=part.d_inner or 2 * width)

    config = replace_parts(config, GroupedQueryAttentionConfig, attention)
    return replace_parts(replace_parts(config, MambaConfig, mamba), Mamba2Config, mamba2)
