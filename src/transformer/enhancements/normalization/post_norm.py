"""Post-normalization (arXiv 1706.03762 §3.1): the 2017 placement, for models that came with another."""

from __future__ import annotations

from typing import TypeVar

from ...base.normalization import NoNormConfig
from ...base.sockets import Config, Enhancement
from ...base.stack import StackConfig
from ...base.wiring import PostNormConfig
from ..compose import replace_parts
from .placement import place

C = TypeVar("C", bound=Config)


def post_norm() -> Enhancement:
    """Wire every sub-layer post-norm; each block then ends in a norm, so the stack has none of its own.

    `base.wiring.PostNorm` has the equation.
    """

    def rewire(stack: StackConfig) -> StackConfig:
        return place(stack, PostNormConfig, NoNormConfig())

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, rewire)

    return apply
