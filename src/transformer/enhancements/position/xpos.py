"""xPos (Sun et al. 2022, arXiv 2212.10554): rotary position whose pairs fade with distance.

    q at n:  ζ_j^(n/S) · (turned by nθ_j),   k at m:  ζ_j^(−m/S) · (turned by mθ_j)
    ζ_j = (2j/e + γ)/(1 + γ),  γ = 0.4,  S = 512

so that the product of pair j is multiplied by ζ_j^((n−m)/S) ≤ 1: the fast pairs, whose product oscillates with the
distance, are damped most (§2.2, algorithm 1). It is meant for causal attention, since for a key after its query the
factor grows; a stack that reads both ways gets plain rotary position from `xpos()`.

ζ^(n/S) leaves the range of floating-point numbers far out. Only differences of positions matter, so a constant may be
subtracted from all of them. The authors' code subtracts half the length of the call, with which keys in a cache would
disagree; here it is half of `max_seq_len`, the same in every call, and a `max_seq_len` whose ends leave float32's range
is refused. In float16, keep max_seq_len·1.25/S below about 16. No parameters; O(t·d) operations per layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Ge, Gt
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ...base.sockets import Config, Enhancement, Layout, PositionConfig
from ...base.stack import StackConfig
from .rope import RotaryPosition, RotaryPositionConfig
from .schemes import edit_stacks, with_position

C = TypeVar("C", bound=Config)
GAMMA = 0.4


class XPosition(RotaryPosition):
    """Rotary position with a decay: queries are scaled by ζ^((n − centre)/S), keys by its inverse."""

    max_seq_len: int

    def __init__(self, base: float = 10000.0, scale_base: float = 512.0, max_seq_len: int = 1024) -> None:
        super().__init__(base, max_seq_len=max_seq_len)
        self.scale_base = scale_base

    def rotate(
        self, q: Float[Tensor, "b h t e"], k: Float[Tensor, "b k t e"], layout: Layout
    ) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b k t e"]]:
        """Turn and scale the queries and keys of this call's tokens."""
        cos, sin = self.circle(layout.positions, q.shape[-1])
        decay = self.decay(layout.positions, q.shape[-1])
        return self.turn(q, cos * decay, sin * decay), self.turn(k, cos / decay, sin / decay)

    def decay(self, positions: Int[Tensor, "b t"], d_head: int) -> Float[Tensor, "b 1 t p"]:
        """ζ_j^((n − centre)/S) for each position and pair, in float64."""
        pairs = torch.arange(0, d_head, 2, dtype=torch.float64, device=positions.device)
        zeta = (pairs / d_head + GAMMA) / (1 + GAMMA)
        centred = positions.double() - self.max_seq_len // 2
        return zeta ** rearrange(centred / self.scale_base, "b t -> b 1 t 1")


@dataclass(frozen=True)
class XPositionConfig(PositionConfig):
    """xPos for sequences of up to `max_seq_len` tokens; scale_base: positions over which a pair fades to ζ."""

    kind: ClassVar[str] = "xpos"
    base: Annotated[float, Gt(1)] = 10000.0
    scale_base: Annotated[float, Gt(0)] = 512.0
    max_seq_len: Annotated[int, Ge(1)] = 1024

    def __post_init__(self) -> None:
        steepest, limit = math.log((1 + GAMMA) / GAMMA), 80.0  # float32 ends at e^88
        if self.max_seq_len / 2 * steepest > limit * self.scale_base:
            raise ValueError(
                f"xPos over max_seq_len {self.max_seq_len} with scale_base {self.scale_base:g} leaves the range of "
                f"float32; lower max_seq_len to {int(2 * limit * self.scale_base / steepest)} or raise scale_base "
                f"to {math.ceil(self.max_seq_len / 2 * steepest / limit)}"
            )

    def build(self, d_model: int) -> XPosition:
        return XPosition(self.base, self.scale_base, self.max_seq_len)


def xpos(base: float = 10000.0, scale_base: float = 512.0, max_seq_len: int | None = None) -> Enhancement:
    """Use xPos in every causal stack, and rotary position in those that read both ways.

    max_seq_len: null is that of the scheme which the stack has, or 1024 if it knows no end.
    """

    def position(stack: StackConfig) -> XPositionConfig:
        known: int | None = getattr(stack.position, "max_seq_len", None)
        return XPositionConfig(base, scale_base, max_seq_len or known or 1024)

    def apply(config: C) -> C:
        return edit_stacks(
            config,
            decoder=lambda stack: with_position(stack, position(stack)),
            encoder=lambda stack: with_position(stack, RotaryPositionConfig(base)),
        )

    return apply
