"""Group normalization (Wu and He 2018, arXiv 1803.08494), of each token by itself.

    GroupNorm(x)_i = γ_i · (x_i − μ_G) / √(σ²_G + ε) + β_i,   i in group G, a run of d_model / n_groups channels

The paper, which is about images, takes μ and σ² over the channels of a group and over all places of the image. Over all
places of a sentence they would tell each token about the ones after it: `torch.nn.GroupNorm` on (batch, channels, time)
is not causal. Here μ and σ² are of one token. With one group this is LayerNorm. Computed in float32 or better and cast
back. Cost: O(d) per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Ge, Gt
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Config, Enhancement, NormConfig
from .replace_norms import replace_norms

C = TypeVar("C", bound=Config)


class GroupNorm(nn.Module):
    """Normalize each group of a token's channels to mean 0 and variance 1, then scale and shift each channel."""

    def __init__(self, d_model: int, n_groups: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        if d_model % n_groups or n_groups == d_model:
            raise ValueError(
                f"d_model {d_model} cannot be split into n_groups {n_groups} equal groups of two or more channels; "
                f"{_nearest(d_model, n_groups)}"
            )
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.n_groups, self.epsilon = n_groups, epsilon

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalize each token by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = rearrange(wide, "... (group channel) -> ... group channel", group=self.n_groups)
        normed = F.layer_norm(groups, groups.shape[-1:], eps=self.epsilon)
        flat = rearrange(normed, "... group channel -> ... (group channel)")
        return (flat * self.weight + self.bias).to(x.dtype)


@dataclass(frozen=True)
class GroupNormConfig(NormConfig):
    """Normalization of each group of channels; 8 groups are one per head at the size of the 2017 base model."""

    kind: ClassVar[str] = "group_norm"
    n_groups: Annotated[int, Ge(1)] = 8
    epsilon: Annotated[float, Gt(0)] = 1e-5

    def build(self, d_model: int) -> GroupNorm:
        return GroupNorm(d_model, self.n_groups, self.epsilon)


def group_norm(n_groups: int = 8, epsilon: float = 1e-5) -> Enhancement:
    """Use GroupNorm for every norm of the residual stream."""

    def apply(config: C) -> C:
        return replace_norms(config, GroupNormConfig(n_groups, epsilon))

    return apply


def _nearest(d_model: int, n_groups: int) -> str:
    """Name the number of groups nearest to the one asked for that leaves two channels or more in each."""
    fitting = [n for n in range(1, d_model // 2 + 1) if d_model % n == 0]
    if not fitting:
        return "one channel has nothing to be normalized by, so use another norm"
    return f"the nearest n_groups that fits is {min(fitting, key=lambda n: abs(n - n_groups))}"
