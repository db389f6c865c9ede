"""Where the norm stands: what the wirings that differ in nothing else have in common, and how one replaces another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

from annotated_types import Ge, Lt

from ...base.normalization import LayerNormConfig
from ...base.sockets import NormConfig, WiringConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PostNormConfig, PreNormConfig
from ..compose import replace_parts


@dataclass(frozen=True)
class PlacementConfig(WiringConfig):
    """A wiring that adds a branch to the stream, with `dropout` on what it adds."""

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1


Placement: TypeAlias = PostNormConfig | PreNormConfig | PlacementConfig
PLACEMENTS: tuple[type[Placement], ...] = (PostNormConfig, PreNormConfig, PlacementConfig)


def place(stack: StackConfig, wiring: Callable[[float], Placement], final: NormConfig) -> StackConfig:
    """Return `stack` with `wiring(dropout)` around every sub-layer, in place of any other, and ending in `final`.

    The dropout of each wiring is kept.
    """
    for placement in PLACEMENTS:
        stack = replace_parts(stack, placement, lambda old: wiring(old.dropout))
    return replace(stack, norm=final)


def first_norm(stack: StackConfig) -> NormConfig:
    """The norm of the stack's first block, which is the one to end the stack in; LayerNorm where that has none."""
    found: list[NormConfig] = []

    def look(block: BlockConfig) -> BlockConfig:
        found.append(block.norm)
        return block

    replace_parts(stack, BlockConfig, look)
    return found[0] if found else LayerNormConfig()
