"""Dynamic tanh, DyT (Zhu, Chen, He, LeCun and Liu 2025, arXiv 2503.10622): a squashing in a norm's place.

    DyT(x) = γ · tanh(α x) + β

α is one learned number for the layer, γ and β have an entry for each dimension. Entries do not see each other: there is
no mean and no variance, so a token's scale is not divided away but limited. α is 0.5 at first. For LLaMA the paper
tunes it (§7.2), smaller for wider models and larger before attention than elsewhere, and multiplies the embedding by a
learned number, √d at first (appendix A); here α begins alike everywhere, and the embedding is as it was
(`EmbeddingConfig(scaled=True)` multiplies by √d, not learned). Cost: O(d) per token, and no reduction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from ...base.sockets import Config, Enhancement, NormConfig
from .replace_norms import replace_norms

C = TypeVar("C", bound=Config)


class DynamicTanh(nn.Module):
    """Squash each entry by tanh, as steeply as α says, then scale and shift each dimension."""

    def __init__(self, d_model: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Squash each entry by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (torch.tanh(self.alpha * wide) * self.weight + self.bias).to(x.dtype)


@dataclass(frozen=True)
class DynamicTanhConfig(NormConfig):
    """tanh in place of a norm; `alpha` is its first slope."""

    kind: ClassVar[str] = "dynamic_tanh"
    alpha: Annotated[float, Gt(0)] = 0.5

    def build(self, d_model: int) -> DynamicTanh:
        return DynamicTanh(d_model, self.alpha)


def dynamic_tanh(alpha: float = 0.5) -> Enhancement:
    """Use DyT in place of every norm of the residual stream."""

    def apply(config: C) -> C:
        return replace_norms(config, DynamicTanhConfig(alpha))

    return apply
