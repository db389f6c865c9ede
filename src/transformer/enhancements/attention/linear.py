"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236): a feature map instead of the softmax.

    o_t = Σ_{s≤t} φ(q_t)·φ(k_s) v_s / (Σ_{s≤t} φ(q_t)·φ(k_s) + ε),   φ(x) = elu(x) + 1            (equations 7 and 8)
    S_t = S_{t−1} + φ(k_t)ᵀ v_t,   z_t = z_{t−1} + φ(k_t),   o_t = φ(q_t) S_t / (φ(q_t)·z_t + ε)  (equations 16 to 20)

The weight of a pair is a product of features, so the sum over keys can be taken before a query is known: a state of
e × (e + 1) numbers per head takes the place of the key-value cache. In an encoder s runs over all tokens and the same
two sums are taken once (equation 6). ε keeps 0/0 from a row that is all padding.

Rotary positions turn the features in the numerator only, as in RoFormer (arXiv 2104.09864 §3.3, equation 19): the
weights of a turned product may be negative, and their sum near 0. Not in the paper; without a scheme that rotates, it
is the paper's. There is no scale 1/√e, and no dropout of weights, which are never formed.
Cost per sequence: O(t·d²) for the projections and O(t·(C + e)·d) for the rest, in chunks of C tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.sockets import Context, Enhancement, Layer, MixerConfig, OutputProjection
from .recurrence import RecurrentState, Segments, check_context, scan
from .replacement import head_width, replace_attention


def parallel_linear_attention(
    q: Float[Tensor, "b h t _"],
    k: Float[Tensor, "b h t _"],
    v: Float[Tensor, "b h t e"],
    turned: tuple[Float[Tensor, "b h t _"], Float[Tensor, "b h t _"]],
    visible: Bool[Tensor, "#b 1 #t t"] | None,
    epsilon: float,
) -> Float[Tensor, "b h t e"]:
    """The definition over features `q` and `k` (`turned` in the numerator), each pair by itself: O(t²)."""
    seen = torch.ones((), device=q.device) if visible is None else visible
    weights, normalizer = (a @ b.mT * seen.to(q.dtype) for a, b in (turned, (q, k)))
    return weights @ v / (normalizer.sum(dim=-1, keepdim=True) + epsilon)


def full_linear_attention(
    q: Float[Tensor, "b h t _"],
    k: Float[Tensor, "b h t _"],
    v: Float[Tensor, "b h t e"],
    turned: tuple[Float[Tensor, "b h t _"], Float[Tensor, "b h t _"]],
    segments: Segments,
    epsilon: float,
) -> Float[Tensor, "b h t e"]:
    """The same where every query sees every real key: one sum over the keys for all queries (equation 6)."""
    sums = segments.erase(turned[1]).mT @ v
    normalizer = segments.erase(k).sum(dim=-2, keepdim=True).mT
    return turned[0] @ sums / (q @ normalizer + epsilon)


def causal_linear_attention(
    q: Float[Tensor, "b h t _"],
    k: Float[Tensor, "b h t _"],
    v: Float[Tensor, "b h t e"],
    turned: tuple[Float[Tensor, "b h t _"], Float[Tensor, "b h t _"]],
    log_decay: Float[Tensor, "#b #h t 1"],
    segments: Segments,
    epsilon: float,
    state: RecurrentState | None,
) -> Float[Tensor, "b h t e"]:
    """The same from left to right: numerator and normalizer by one scan, or by one each where they differ."""
    ones = torch.ones_like(v[..., :1])
    if turned[0] is q:
        both = scan(q, k, torch.cat([v, ones], dim=-1), log_decay, segments, state)
        sums, normalizer = both[..., :-1], both[..., -1:]
    else:
        sums = scan(*turned, v, log_decay, segments, state)
        normalizer = scan(q, k, ones, log_decay, segments, state, "normalizer")
    return sums / (normalizer + epsilon)


class LinearAttention(Layer):
    """Multi-head linear attention with φ(x) = elu(x) + 1; `features` and what calls it are another map's to change."""

    name = "linear attention"

    def __init__(self, d_model: int, n_heads: int, bias: bool = False, epsilon: float = 1e-6) -> None:
        super().__init__()
        head_width(d_model, n_heads)
        self.n_heads, self.epsilon = n_heads, epsilon
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.out_proj = OutputProjection(d_model, d_model, bias=bias)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Average the values each token may see, weighed by products of features."""
        check_context(context, self.name)
        segments = Segments.of(context.layout, len(x), state)
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k, v = (rearrange(y, "b t (h e) -> b h t e", h=self.n_heads).to(wide) for y in projected)
        mix = self.causal if context.mask.causal else self.full
        with torch.autocast(x.device.type, enabled=False):
            mixed = mix(q, k, v, context, segments, state)
        return self.out_proj(rearrange(mixed, "b h t e -> b t (h e)").to(x.dtype))  # type: ignore[no-any-return]

    def initial_state(self) -> RecurrentState:
        return RecurrentState()

    def causal(
        self,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b h t e"],
        v: Float[Tensor, "b h t e"],
        context: Context,
        segments: Segments,
        state: RecurrentState | None,
    ) -> Float[Tensor, "b h t e"]:
        """Each token sees itself and those before it."""
        q, k = F.elu(q) + 1, F.elu(k) + 1
        turned = context.position.rotate(q, k, context.layout)
        no_decay = q.new_zeros(1, 1, q.shape[2], 1)
        return causal_linear_attention(q, k, v, turned, no_decay, segments, self.epsilon, state)

    def full(
        self,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b h t e"],
        v: Float[Tensor, "b h t e"],
        context: Context,
        segments: Segments,
        state: RecurrentState | None,
    ) -> Float[Tensor, "b h t e"]:
        """Each token sees all of its document."""
        return self.average(F.elu(q) + 1, F.elu(k) + 1, v, context, segments)

    def average(
        self,
        q: Float[Tensor, "b h t _"],
        k: Float[Tensor, "b h t _"],
        v: Float[Tensor, "b h t e"],
        context: Context,
        segments: Segments,
    ) -> Float[Tensor, "b h t e"]:
        """Over all tokens, given features; of packed documents, pair by pair."""
        turned = context.position.rotate(q, k, context.layout)
        if segments.runs is None:
            return full_linear_attention(q, k, v, turned, segments, self.epsilon)
        return parallel_linear_attention(q, k, v, turned, context.pairs.visible, self.epsilon)


@dataclass(frozen=True)
class LinearAttentionConfig(MixerConfig):
    """Linear attention with elu + 1. epsilon: added to the sum of the weights."""

    kind: ClassVar[str] = "linear_attention"
    n_heads: Annotated[int, Ge(1)] = 8
    bias: bool = False
    epsilon: Annotated[float, Gt(0)] = 1e-6

    def build(self, d_model: int) -> LinearAttention:
        return LinearAttention(d_model, self.n_heads, self.bias, self.epsilon)


def linear_attention() -> Enhancement:
    """Use linear attention instead of softmax self-attention, in encoders too."""
    return replace_attention(lambda part: LinearAttentionConfig(part.n_heads, part.bias))
