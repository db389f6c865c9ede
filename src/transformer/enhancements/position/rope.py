"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Gt
from jaxtyping import Float, Int
from torch import Tensor

from ...base.sockets import Config, Enhancement, Layout, Position, PositionConfig
from ...base.stack import StackConfig
from ..compose import replace_parts

C = TypeVar("C", bound=Config)


class RotaryPosition(Position):
    """Turn each pair of dimensions of a query or key by an angle that grows with its position (§3.2.2).

        (x_j, x_{j + e/2}) → (x_j cos nθ_j − x_{j + e/2} sin nθ_j,  x_{j + e/2} cos nθ_j + x_j sin nθ_j)
        θ_j = base^(−2j/e)   for position n, head width e, pair j = 0 … e/2 − 1

    so that the product of a query at m and a key at n depends on the two vectors and on m − n alone. The paper pairs
    neighbouring dimensions (2j, 2j + 1); this pairs the two halves (j, j + e/2), as LLaMA's and GPT-NeoX's published
    weights are stored: the same scheme up to a fixed reordering of the rows of W^Q and W^K. Angles are computed in
    float64, so that far positions are turned as exactly as near ones. No parameters and no longest sequence.
    """

    def __init__(self, base: float = 10000.0) -> None:
        super().__init__()
        self.base = base

    def rotate(
        self, q: Float[Tensor, "b h t e"], k: Float[Tensor, "b k t e"], layout: Layout
    ) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b k t e"]]:
        """Turn the queries and keys of this call's tokens."""
        angles = rotary_angles(layout.positions, q.shape[-1], self.base)[:, None]
        return turn(q, angles), turn(k, angles)


def rotary_angles(positions: Int[Tensor, "b t"], d_head: int, base: float) -> Float[Tensor, "b t p"]:
    """n·θ_j for each position and pair, in float64 radians."""
    if d_head % 2:
        raise ValueError(
            f"rotary position needs heads of even width, got {d_head}; change n_heads or d_model"
        )
    pairs = torch.arange(0, d_head, 2, dtype=torch.float64, device=positions.device)
    return positions.double()[..., None] * base ** (-pairs / d_head)


def turn(x: Float[Tensor, "b h t e"], angles: Float[Tensor, "#b 1 t p"]) -> Float[Tensor, "b h t e"]:
    """Turn each pair (j, j + e/2) of `x` by its angle, in float32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


@dataclass(frozen=True)
class RotaryPositionConfig(PositionConfig):
    """Rotary position embedding."""

    kind: ClassVar[str] = "rotary_position"
    base: Annotated[float, Gt(0)] = 10000.0

    def build(self, d_model: int) -> RotaryPosition:
        return RotaryPosition(self.base)


def rope(base: float = 10000.0) -> Enhancement:
    """Use rotary position embedding in every stack, instead of the scheme it has."""

    def apply(config: C) -> C:
        return replace_parts(
            config, StackConfig, lambda stack: replace(stack, position=RotaryPositionConfig(base))
        )

    return apply
