"""YaRN (Peng et al. 2023, arXiv 2309.00071): rotary frequencies for longer contexts, scaled by how far each turns.

Over the L₀ positions of training, pair j turns r_j = L₀ θ_j / 2π times. A pair that turns often (r > β_fast) has been
seen at all its angles and keeps its frequency; one that turns less than once (r < β_slow) tells absolute positions and
is interpolated, θ/s; those between are blended (§3.2, "NTK-by-parts"):

    j(r) = e · ln(L₀ / 2πr) / (2 ln base)            the pair that turns r times
    γ_j  = clip((j − ⌊j(β_fast)⌋) / (⌈j(β_slow)⌉ − ⌊j(β_fast)⌋), 0, 1)
    θ'_j = (1 − γ_j)·θ_j + γ_j·θ_j/s

and queries and keys are multiplied by 0.1 ln s + 1, which divides the temperature of the softmax by its square (§3.4).

The ramp runs in the index of the pair, as in the paper's own code; the paper's equation writes it in r. Public code has
had it upside down: the fast pairs must be the ones that are kept. Cost: none per token beyond rotary position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from .rope_scaling import Factor, Length, RopeScalingConfig, rotary_frequencies


@dataclass(frozen=True)
class YaRNRopeScalingConfig(RopeScalingConfig):
    """YaRN for sequences `factor` times as long as `original_length`.

    beta_fast, beta_slow: turns within `original_length` above which a pair is kept, below which it is interpolated.
    ramp: whether its ends are rounded outward to whole pairs, as in the paper's code, or not (as in gpt-oss).
    attention_factor: null is the paper's 0.1 ln s + 1. DeepSeek's checkpoints come with another.
    """

    kind: ClassVar[str] = "yarn_rope_scaling"
    factor: Factor = 2.0
    original_length: Length = 2048
    beta_fast: Annotated[float, Gt(0)] = 32.0
    beta_slow: Annotated[float, Gt(0)] = 1.0
    ramp: Literal["rounded", "exact"] = "rounded"
    attention_factor: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"beta_fast {self.beta_fast:g} must be more than beta_slow {self.beta_slow:g}; the paper has 32 and 1"
            )

    def frequencies(
        self, d_head: int, base: float, length: int | None, device: torch.device | None = None
    ) -> tuple[Float[Tensor, " p"], float]:
        theta = rotary_frequencies(d_head, base, device)
        first, last = self.ramp_ends(d_head, base)
        index = torch.arange(len(theta), dtype=torch.float64, device=device)
        interpolated = ((index - first) / (last - first)).clamp(0, 1)
        scaled = (1 - interpolated) * theta + interpolated * theta / self.factor
        factor = 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor
        return scaled, factor

    def ramp_ends(self, d_head: int, base: float) -> tuple[float, float]:
        """The last pair that is kept and the first that is interpolated in full."""
        first, last = (
            d_head * math.log(self.original_length / (2 * math.pi * turns)) / (2 * math.log(base))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.ramp == "rounded":
            first, last = float(math.floor(first)), float(math.ceil(last))
        first, last = max(first, 0.0), min(last, float(d_head - 1))
        return first, max(last, first + 0.001)  # a ramp of no length is a step
