"""Residual connections: how a sub-layer is attached to the stream (arXiv 1706.03762 §3.1 and §5.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .sockets import Context, Layer, NormConfig, State, WiringConfig


class Dropout(nn.Module):
    """Set each entry to zero with probability `p` while training, and scale the others by 1/(1 − p) (§5.4, ref. 33).

    PyTorch's own on a GPU, and wherever it is compiled. On a CPU that one draws a float for every entry, which takes
    a tenth of a training step; here an entry costs 16 random bits, so p is rounded to a multiple of 2⁻¹⁶.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Drop entries of `x`, of any shape."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), 2**63 - 1)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        return x * (bits >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Wiring(Layer):
    """A branch, a norm and a dropout; each wiring says in one equation how they meet the residual stream."""

    def __init__(self, branch: Layer, norm: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.branch, self.norm, self.dropout = branch, norm, Dropout(dropout)

    def initial_state(self) -> State | None:
        return self.branch.initial_state()


class PostNorm(Wiring):
    """LayerNorm(x + Dropout(Sublayer(x))): the paper's (§3.1; the dropout is §5.4's)."""

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Add, then normalize."""
        return self.norm(x + self.dropout(self.branch(x, context, state)))  # type: ignore[no-any-return]


class PreNorm(Wiring):
    """x + Dropout(Sublayer(LayerNorm(x))): the stream itself is never normalized (arXiv 2002.04745).

    Gradients reach every layer unscaled, so training needs no warm-up; a stack wired so ends in one more norm.
    """

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Normalize on the way into the branch only."""
        return x + self.dropout(self.branch(self.norm(x), context, state))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PostNormConfig(WiringConfig):
    """Normalize after the residual addition."""

    kind: ClassVar[str] = "post_norm"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> PostNorm:
        return PostNorm(branch, norm.build(d_model), self.dropout)


@dataclass(frozen=True)
class PreNormConfig(WiringConfig):
    """Normalize the input of the branch."""

    kind: ClassVar[str] = "pre_norm"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> PreNorm:
        return PreNorm(branch, norm.build(d_model), self.dropout)
