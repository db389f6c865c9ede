"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    (x, y)_j → (x cos nθ_j − y sin nθ_j,  y cos nθ_j + x sin nθ_j),   θ_j = base^(−2j/e)

for position n and pairs j = 0 … e/2 − 1 of the e dimensions of a head (§3.2.2), so that the product of a query at m and
a key at n depends on the two vectors and on m − n alone. Which dimensions make a pair is the layout: the paper's is
`interleaved`, (2j, 2j + 1); the default here is `half`, (j, j + e/2), as the published weights of LLaMA and GPT-NeoX
are stored. The two are one scheme up to a fixed order of the rows of W^Q and W^K, which `to_interleaved` and `to_half`
change. Beyond the paper, only the first dimensions of each head may be turned (`fraction`: GPT-J, GPT-NeoX), and the
frequencies may be scaled for longer contexts (`rope_scaling`).

Angles are computed in float64, so that far positions are turned as exactly as near ones. No parameters; O(t·d)
operations per layer, nothing per pair of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from annotated_types import Ge, Gt, Le
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ...base.sockets import Config, Enhancement, Layout, Position, PositionConfig
from .rope_scaling import NoRopeScalingConfig, RopeScalingConfig
from .schemes import edit_stacks, with_position

C = TypeVar("C", bound=Config)
UNSCALED = NoRopeScalingConfig()


class RotaryPosition(Position):
    """Turn each pair of dimensions of a query or key, (j, j + e/2), by an angle that grows with its position."""

    def __init__(
        self,
        base: float = 10000.0,
        fraction: float = 1.0,
        scaling: RopeScalingConfig = UNSCALED,
        max_seq_len: int | None = None,
    ) -> None:
        super().__init__()
        self.base, self.fraction, self.scaling, self.max_seq_len = base, fraction, scaling, max_seq_len

    def rotate(
        self, q: Float[Tensor, "b h t e"], k: Float[Tensor, "b k t e"], layout: Layout
    ) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b k t e"]]:
        """Turn the queries and keys of this call's tokens."""
        cos, sin = self.circle(layout.positions, q.shape[-1])
        return self.turn(q, cos, sin), self.turn(k, cos, sin)

    def circle(
        self, positions: Int[Tensor, "b t"], d_head: int
    ) -> tuple[Float[Tensor, "b 1 t p"], Float[Tensor, "b 1 t p"]]:
        """The cosine and sine of each pair's angle at each position, times the attention factor, in float64."""
        width = rotary_width(d_head, self.fraction)
        theta, factor = self.scaling.frequencies(width, self.base, self.max_seq_len, positions.device)
        angles = rearrange(positions, "b t -> b 1 t 1") * theta
        return angles.cos() * factor, angles.sin() * factor

    def turn(
        self, x: Float[Tensor, "b h t e"], cos: Float[Tensor, "#b 1 t p"], sin: Float[Tensor, "#b 1 t p"]
    ) -> Float[Tensor, "b h t e"]:
        """Turn the pairs of `x`, in float32 or better; dimensions that are in no pair stay."""
        wide, cos, sin = _at_least_single(x, cos, sin)
        first, second, rest = wide.tensor_split((cos.shape[-1], 2 * cos.shape[-1]), dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).to(x.dtype)


class InterleavedRotaryPosition(RotaryPosition):
    """Rotary position whose pairs are neighbours, (2j, 2j + 1), as the paper writes it."""

    def turn(
        self, x: Float[Tensor, "b h t e"], cos: Float[Tensor, "#b 1 t p"], sin: Float[Tensor, "#b 1 t p"]
    ) -> Float[Tensor, "b h t e"]:
        """Turn the pairs of `x`, in float32 or better; dimensions that are in no pair stay."""
        wide, cos, sin = _at_least_single(x, cos, sin)
        pairs, rest = wide.tensor_split((2 * cos.shape[-1],), dim=-1)
        even, odd = pairs[..., ::2], pairs[..., 1::2]
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
        return torch.cat([rearrange(turned, "b h t p two -> b h t (p two)"), rest], dim=-1).to(x.dtype)


def _at_least_single(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype), cos.to(dtype), sin.to(dtype)


def rotary_width(d_head: int, fraction: float = 1.0) -> int:
    """How many of a head's dimensions are turned: the fraction of them, rounded down."""
    width = int(d_head * fraction)
    if width % 2 or width == 0:
        raise ValueError(
            f"rotary position needs heads of even width, got {d_head}; change n_heads or d_model"
            if fraction == 1
            else f"rotary position turns pairs, but {fraction:g} of a head's {d_head} dimensions is {width}; "
            f"the nearest fraction that gives pairs is {max(2, width - width % 2) / d_head:g}"
        )
    return width


def to_interleaved(rows: Float[Tensor, "..."], n_heads: int, fraction: float = 1.0) -> Float[Tensor, "..."]:
    """Reorder the rows of W^Q or W^K, or its bias, made for the layout `half`, for the layout `interleaved`.

    rows: its first axis is that of the heads' dimensions, (n_heads · d_head, …); n_heads: of the keys' heads for W^K.
    The models compute the same: row j + two·(e/2) of each head becomes row 2j + two.
    """
    return _reorder(rows, n_heads, fraction, "h (two p) ... -> h (p two) ...")


def to_half(rows: Float[Tensor, "..."], n_heads: int, fraction: float = 1.0) -> Float[Tensor, "..."]:
    """Reorder rows made for the layout `interleaved` for the layout `half`: the inverse of `to_interleaved`."""
    return _reorder(rows, n_heads, fraction, "h (p two) ... -> h (two p) ...")


def _reorder(rows: Tensor, n_heads: int, fraction: float, order: str) -> Tensor:
    if rows.shape[0] % n_heads:
        raise ValueError(f"{rows.shape[0]} rows are not those of n_heads {n_heads} heads of one width")
    heads = rearrange(rows, "(h e) ... -> h e ...", h=n_heads)
    width = rotary_width(heads.shape[1], fraction)
    turned, rest = heads.tensor_split((width,), dim=1)
    return rearrange(torch.cat([rearrange(turned, order, two=2), rest], dim=1), "h e ... -> (h e) ...")


@dataclass(frozen=True)
class RotaryPositionConfig(PositionConfig):
    """Rotary position embedding.

    fraction: of each head's dimensions that are turned, the first ones. scaling: of the frequencies, for contexts
    longer than in training. max_seq_len: the longest sequence that is let in; null is any.
    """

    kind: ClassVar[str] = "rotary_position"
    base: Annotated[float, Gt(1)] = 10000.0
    layout: Literal["half", "interleaved"] = "half"
    fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    scaling: RopeScalingConfig = UNSCALED
    max_seq_len: Annotated[int, Ge(1)] | None = None

    def __post_init__(self) -> None:
        self.scaling.require_length(self.max_seq_len)

    def build(self, d_model: int) -> RotaryPosition:
        layouts = {"half": RotaryPosition, "interleaved": InterleavedRotaryPosition}
        return layouts[self.layout](self.base, self.fraction, self.scaling, self.max_seq_len)


def rope(
    base: float = 10000.0,
    scaling: RopeScalingConfig = UNSCALED,
    *,
    layout: Literal["half", "interleaved"] = "half",
    fraction: float = 1.0,
    max_seq_len: int | None = None,
) -> Enhancement:
    """Use rotary position embedding in every stack, instead of the scheme it has."""
    position = RotaryPositionConfig(base, layout, fraction, scaling, max_seq_len)

    def apply(config: C) -> C:
        return edit_stacks(config, lambda stack: with_position(stack, position))

    return apply
