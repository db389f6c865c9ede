"""Pre-normalization (Xiong et al. 2020, arXiv 2002.04745): the norm on the branch instead of on the stream."""

from __future__ import annotations

from typing import TypeVar

from ...base.sockets import Config, Enhancement
from ...base.stack import StackConfig
from ...base.wiring import PreNormConfig
from ..compose import replace_parts
from .placement import first_norm, place

C = TypeVar("C", bound=Config)


def pre_norm() -> Enhancement:
    """Wire every sub-layer pre-norm, and end every stack in one more norm of the kind that its first block has.

    `base.wiring.PreNorm` has the equation.
    """

    def rewire(stack: StackConfig) -> StackConfig:
        return place(stack, PreNormConfig, first_norm(stack))

    def apply(config: C) -> C:
        return replace_parts(config, StackConfig, rewire)

    return apply
