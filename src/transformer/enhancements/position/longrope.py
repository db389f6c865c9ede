"""LongRoPE (Ding et al. 2024, arXiv 2402.13753): rotary frequencies divided by factors that were searched for.

    θ'_j = θ_j / λ_j,   queries and keys multiplied by √(1 + ln s / ln L₀)

The factors λ_j come with a checkpoint: one list for short sequences, one for long ones. The paper's search for them
is not here. Its other idea, to leave the first n̂ positions unscaled, is not either, since published models (Phi-3) do
without it. The square root is the one that those models use.

Which list applies depends on the length that the model is built for, not on the sequence at hand: build with
`max_seq_len` up to `original_length` for the short list, beyond it for the long one. Implementations that change the
list while a sequence grows turn new queries by other angles than the keys in the cache. The attention factor is that
of the extended model in both cases, as in the published models. Cost: none per token beyond rotary position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, MinLen
from jaxtyping import Float
from torch import Tensor

from .rope_scaling import Factor, Length, RopeScalingConfig, require_length, rotary_frequencies

Factors = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]
"""A divisor for the frequency of each pair."""


@dataclass(frozen=True)
class LongRopeScalingConfig(RopeScalingConfig):
    """LongRoPE for sequences `factor` times as long as `original_length`; one number per pair in each list.

    attention_factor: null is √(1 + ln s / ln L₀).
    """

    kind: ClassVar[str] = "longrope_scaling"
    short_factors: Factors
    long_factors: Factors
    factor: Factor = 32.0
    original_length: Annotated[Length, Gt(1)] = 4096
    attention_factor: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if len(self.short_factors) != len(self.long_factors):
            raise ValueError(
                f"short_factors has {len(self.short_factors)} numbers and long_factors {len(self.long_factors)}; "
                "give each one number per rotary pair"
            )

    def frequencies(
        self, d_head: int, base: float, length: int | None, device: torch.device | None = None
    ) -> tuple[Float[Tensor, " p"], float]:
        factors = self.long_factors if (length or 0) > self.original_length else self.short_factors
        if 2 * len(factors) != d_head:
            raise ValueError(
                f"longrope_scaling has factors for {len(factors)} pairs, but {d_head} dimensions are turned; "
                f"give {d_head // 2} factors in each list"
            )
        divisors = torch.tensor(factors, dtype=torch.float64, device=device)
        attention_factor = math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))
        return (
            rotary_frequencies(d_head, base, device) / divisors,
            attention_factor if self.attention_factor is None else self.attention_factor,
        )

    def require_length(self, length: int | None) -> None:
        require_length(self, length)
