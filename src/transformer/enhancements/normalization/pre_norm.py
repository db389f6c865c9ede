"""Pre-normalization (Xiong et al. 2020, arXiv 2002.04745): the norm on the branch instead of on the stream."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ...base.normalization import LayerNormConfig
from ...base.sockets import Config, Enhancement
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PostNormConfig, PreNormConfig
from ..compose import replace_parts

C = TypeVar("C", bound=Config)


def pre_norm() -> Enhancement:
    """Wire every sub-layer pre-norm, and end every stack in one more norm of the kind that its first block has.

    `base.wiring.PreNorm` has the equation.
    """

    def rewire(stack: StackConfig) -> StackConfig:
        first = stack.blocks[0]
        stack = replace(stack, norm=first.norm if isinstance(first, BlockConfig) else LayerNormConfig())
        return replace_parts(stack, PostNormConfig, lambda wiring: PreNormConfig(wiring.dropout))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, rewire)

    return apply
