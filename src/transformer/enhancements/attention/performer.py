"""Performer (Choromanski et al. 2021, arXiv 2009.14794): softmax attention estimated by positive random features.

    φ(x) = exp(ω x̂ − ‖x̂‖²/2) / √m,   x̂ = x / e^{1/4},   ω: m random directions               (FAVOR+, lemma 1)
    E[φ(q)·φ(k)] = exp(q·k / √e)

so that linear attention (`linear.py`) over these features estimates softmax attention without bias in its numerator
and in its denominator. Blocks of e directions are orthogonal, their lengths those of independent normal vectors:
the estimate stays unbiased and varies less (§3.2, theorem 2). m is ⌈e ln e⌉ unless given.

An exponent may be large. A query is divided by its largest feature, which cancels in the quotient. What the keys are
divided by must be common to all that a query sees, and must not be known before they are: it is the largest feature of
the keys so far, and where it grows the sums so far decay by as much, exactly (the log-decay of `recurrence.scan`). A
maximum over the whole sequence, as in public code, would let later tokens and other rows into a causal output's last
bits. All these divisors cancel but for ε, so no gradient is taken through them.

The directions are a buffer, saved with the weights. The paper draws new ones now and then while training; here they
stay. Cost per sequence: as linear attention's with m in place of e, O(t·(C + e)·m) for each head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...base.sockets import Context, Enhancement, MixerConfig, Size
from .linear import LinearAttention, causal_linear_attention
from .recurrence import RecurrentState, Segments
from .replacement import replace_attention

LOWEST = -1e30
"""Stands for the largest feature of no key at all: below all others and finite, so that differences exist."""


def orthogonal_directions(count: int, width: int) -> Float[Tensor, "_ e"]:
    """`count` directions, each distributed as a standard normal vector, orthogonal within each block of `width`."""
    normal = torch.randn(math.ceil(count / width), width, width, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # the signs make it uniform over all rotations
    lengths = torch.randn(count, width, dtype=torch.float64).norm(dim=1, keepdim=True)
    return q.flatten(0, 1)[:count] * lengths  # type: ignore[no-any-return]


def running_max(x: Float[Tensor, "b h t 1"], runs: Int[Tensor, "b t"] | None) -> Float[Tensor, "b h t 1"]:
    """The largest value of each document so far, at every token, in log₂ t steps."""
    step, length = 1, x.shape[2]
    while step < length:
        behind = F.pad(x[:, :, :-step], (0, 0, step, 0), value=LOWEST)
        if runs is not None:
            same = runs == F.pad(runs[:, :-step], (step, 0), value=-1)
            behind = torch.where(same[:, None, :, None], behind, LOWEST)
        x, step = torch.maximum(x, behind), 2 * step
    return x


class Performer(LinearAttention):
    """Multi-head attention by FAVOR+."""

    name = "Performer attention"
    directions: Tensor

    def __init__(
        self, d_model: int, n_heads: int, n_features: int | None, bias: bool = False, epsilon: float = 1e-6
    ) -> None:
        super().__init__(d_model, n_heads, bias, epsilon)
        width = d_model // n_heads
        count = n_features or 2 * math.ceil(width * math.log(max(width, 2)) / 2)
        self.register_buffer("directions", orthogonal_directions(count, width).to(torch.get_default_dtype()))

    def exponents(self, x: Float[Tensor, "b h t e"]) -> Float[Tensor, "b h t _"]:
        """log φ(x), in the precision of `x`."""
        scaled = x * x.shape[-1] ** -0.25
        projected = scaled @ self.directions.to(x.dtype).mT
        squares = scaled.square().sum(dim=-1, keepdim=True)
        return projected - squares / 2 - math.log(len(self.directions)) / 2  # type: ignore[no-any-return]

    def causal(
        self,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b h t e"],
        v: Float[Tensor, "b h t e"],
        context: Context,
        segments: Segments,
        state: RecurrentState | None,
    ) -> Float[Tensor, "b h t e"]:
        """Keys are divided by the largest feature so far; where that grows, the sums so far decay."""
        key, largest = self._keys(k, segments)
        kept = {} if state is None else state.tensors
        before = kept.get("largest", torch.full_like(largest[:, :, :1], LOWEST))
        runs = None if segments.runs is None else F.pad(segments.runs, (1, 0))
        so_far = running_max(torch.cat([before, largest], dim=2), runs)
        if state is not None:
            state.tensors["largest"] = so_far[:, :, -1:]
        # a document may begin with smaller keys than the last had; nothing of that one is seen, so no decay counts
        log_decay = (so_far[:, :, :-1] - so_far[:, :, 1:]).clamp(max=0)
        q, k = self._queries(q), segments.erase(key - so_far[:, :, 1:]).exp()
        turned = context.position.rotate(q, k, context.layout)
        return causal_linear_attention(q, k, v, turned, log_decay, segments, self.epsilon, state)

    def full(
        self,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b h t e"],
        v: Float[Tensor, "b h t e"],
        context: Context,
        segments: Segments,
        state: RecurrentState | None,
    ) -> Float[Tensor, "b h t e"]:
        """Keys are divided by the largest feature of their document."""
        key, largest = self._keys(k, segments)
        largest = running_max(largest, segments.runs)
        back = None if segments.runs is None else segments.runs.flip(1)
        largest = running_max(largest.flip(2), back).flip(2)
        k = segments.erase(key - largest).exp()
        return self.average(self._queries(q), k, v, context, segments)

    def _queries(self, q: Float[Tensor, "b h t e"]) -> Float[Tensor, "b h t _"]:
        exponents = self.exponents(q)
        return (exponents - exponents.detach().amax(dim=-1, keepdim=True)).exp()

    def _keys(
        self, k: Float[Tensor, "b h t e"], segments: Segments
    ) -> tuple[Float[Tensor, "b h t _"], Float[Tensor, "b h t 1"]]:
        """The exponents of the keys' features, and each key's largest; padding has none."""
        exponents = self.exponents(k)
        largest = exponents.detach().amax(dim=-1, keepdim=True)
        if segments.real is not None:
            largest = largest.masked_fill(~segments.real[:, None, :, None], LOWEST)
        return exponents, largest


@dataclass(frozen=True)
class PerformerConfig(MixerConfig):
    """FAVOR+ attention. n_features: random directions; null is ⌈e ln e⌉. epsilon: added to the sum of the weights."""

    kind: ClassVar[str] = "performer"
    n_heads: Annotated[int, Ge(1)] = 8
    n_features: Size | None = None
    bias: bool = False
    epsilon: Annotated[float, Gt(0)] = 1e-6

    def build(self, d_model: int) -> Performer:
        return Performer(d_model, self.n_heads, self.n_features, self.bias, self.epsilon)


def performer(n_features: int | None = None) -> Enhancement:
    """Use FAVOR+ instead of softmax self-attention, in encoders too."""
    return replace_attention(lambda part: PerformerConfig(part.n_heads, n_features, part.bias))
