"""Longer contexts for rotary position: other frequencies for a model that was trained on shorter sequences.

A model trained up to position L₀ has never seen the angles n·θ_j of the slow pairs beyond n = L₀. Each rule here
maps the frequencies θ_j = base^(−2j/e), j = 0 … e/2 − 1, to others under which positions up to s·L₀ stay within, or
near, what was seen; `yarn` and `longrope` have files of their own. A rule may also ask for an attention factor, by
which queries and keys are multiplied.

    linear       θ_j / s: position interpolation (arXiv 2306.15595)
    NTK-aware    base → base · s^(e/(e−2)): the fastest pair is unchanged, the slowest divided by s (arXiv 2309.00071)
    dynamic NTK  base → base · (sL/L₀ − (s−1))^(e/(e−2)): the same for a length L > L₀ (arXiv 2309.00071)
    Llama 3.1    by the wavelength 2π/θ_j: short ones kept, long ones divided by s, a blend between (arXiv 2407.21783)

The frequencies never depend on the sequence at hand, but on the length `max_seq_len` that the model is built for.
Some implementations let dynamic NTK and LongRoPE follow the longest sequence of the call. Then keys that were turned
and cached while the sequence was short disagree with the queries of when it is long, a later token changes what an
earlier one computed, and a row's output depends on the rows beside it. Cost: none per token beyond rotary position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from ...base.sockets import Config

Factor = Annotated[float, Ge(1)]
"""How many times longer than in training the sequences are to be."""
Length = Annotated[int, Ge(1)]
"""A number of positions."""


def rotary_frequencies(d_head: int, base: float, device: torch.device | None = None) -> Float[Tensor, " p"]:
    """θ_j = base^(−2j/e) in float64 radians per position; `d_head` is e, the number of dimensions that are turned."""
    pairs = torch.arange(0, d_head, 2, dtype=torch.float64, device=device)
    return base ** (-pairs / d_head)


class RopeScalingConfig(Config):
    """A rule that gives rotary position its frequencies."""

    def frequencies(
        self, d_head: int, base: float, length: int | None, device: torch.device | None = None
    ) -> tuple[Float[Tensor, " p"], float]:
        """Return the frequency of each pair and the attention factor.

        d_head: how many dimensions are turned. length: the longest sequence that the model is built for; None where
        it is not said, which `require_length` refuses for the rules that need it.
        """
        raise NotImplementedError

    def require_length(self, length: int | None) -> None:
        """Raise ValueError if the rule cannot do with this length."""


@dataclass(frozen=True)
class NoRopeScalingConfig(RopeScalingConfig):
    """The frequencies of the paper."""

    kind: ClassVar[str] = "no_rope_scaling"

    def frequencies(
        self, d_head: int, base: float, length: int | None, device: torch.device | None = None
    ) -> tuple[Float[Tensor, " p"], float]:
        return rotary_frequencies(d_head, base, device), 1.0


@dataclass(frozen=True)
class LinearRopeScalingConfig(RopeScalingConfig):
    """Position interpolation: every frequency divided by `factor`."""

    kind: ClassVar[str] = "linear_rope_scaling"
    factor: Factor = 2.0

    def frequencies(
        self, d_head: int, base: float, length: int | None, device: torch.device | None = None
    ) -> tuple[Float[Tensor, " p"], float]:
        return rotary_frequencies(d_head, base, device) / self.factor, 1.0


@dataclass(frozen=True)
class NTKRopeScalingConfig(RopeScalingConfig):
    """NTK-aware scaling: a larger base, by which the slowest pair turns `factor` times more slowly."""

    kind: ClassVar[str] = "ntk_rope_scaling"
    factor: Factor = 2.0

    def frequencies(
        self, d_head: int, base: float, length: int | None, device: torch.device | None = None
    ) -> tuple[Float[Tensor, " p"], float]:
        return rotary_frequencies(d_head, stretched_base(base, self.factor, d_head), device), 1.0


@dataclass(frozen=True)
class DynamicNTKRopeScalingConfig(RopeScalingConfig):
    """NTK-aware scaling for the length that the model is built for; none up to `original_length`."""

    kind: ClassVar[str] = "dynamic_ntk_rope_scaling"
    factor: Factor = 2.0
    original_length: Length = 2048

    def frequencies(
        self, d_head: int, base: float, length: int | None, device: torch.device | None = None
    ) -> tuple[Float[Tensor, " p"], float]:
        longest = max(length or 0, self.original_length)
        stretch = self.factor * longest / self.original_length - (self.factor - 1)
        return rotary_frequencies(d_head, stretched_base(base, stretch, d_head), device), 1.0

    def require_length(self, length: int | None) -> None:
        require_length(self, length)


@dataclass(frozen=True)
class Llama3RopeScalingConfig(RopeScalingConfig):
    """Llama 3.1's rule (8, 1, 4, 8192; Llama 3.2 has factor 32).

    Wavelengths below L₀/high are kept, those above L₀/low divided by s; between them
    θ' = (1 − t)·θ/s + t·θ with t = (L₀/λ − low)/(high − low).
    """

    kind: ClassVar[str] = "llama3_rope_scaling"
    factor: Factor = 8.0
    low_frequency_factor: Annotated[float, Gt(0)] = 1.0
    high_frequency_factor: Annotated[float, Gt(0)] = 4.0
    original_length: Length = 8192

    def __post_init__(self) -> None:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor {self.high_frequency_factor:g} must be more than low_frequency_factor "
                f"{self.low_frequency_factor:g}; Llama 3.1 has 4 and 1"
            )

    def frequencies(
        self, d_head: int, base: float, length: int | None, device: torch.device | None = None
    ) -> tuple[Float[Tensor, " p"], float]:
        theta = rotary_frequencies(d_head, base, device)
        turns = (
            self.original_length * theta / (2 * math.pi)
        )  # L₀/λ: how often a pair turns within L₀ positions
        span = self.high_frequency_factor - self.low_frequency_factor
        kept = ((turns - self.low_frequency_factor) / span).clamp(0, 1)
        return (1 - kept) * theta / self.factor + kept * theta, 1.0


def stretched_base(base: float, stretch: float, d_head: int) -> float:
    """base · stretch^(e/(e−2)): the slowest frequency, base^(−(e−2)/e), becomes its `stretch`-th part."""
    if d_head < 4:
        raise ValueError(
            f"NTK scaling changes the base, which a rotary width of {d_head} does not have; "
            "use a width of 4 or more, or linear scaling"
        )
    return float(base * stretch ** (d_head / (d_head - 2)))


def require_length(scaling: RopeScalingConfig, length: int | None) -> None:
    """Refuse a rotary position of no said length for a rule that depends on it."""
    if length is None:
        raise ValueError(
            f"{scaling.kind} depends on the length that the model is built for; give rotary position a max_seq_len"
        )
