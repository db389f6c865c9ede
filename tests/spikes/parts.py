"""Small real parts on the real sockets, of the kinds that would bend them first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transformer.base.feed_forward import FeedForward
from transformer.base.sockets import (
    Context,
    FeedForwardConfig,
    Layer,
    LayerConfig,
    Layout,
    MixerConfig,
    OutputProjection,
    Position,
    PositionConfig,
    State,
)
from transformer.base.stack import BlockConfig


class SwitchFeedForward(Layer):
    """Each token goes to its likeliest expert, times the probability; α·N·Σ f_i P_i balances them (2101.03961)."""

    def __init__(self, d_model: int, d_ff: int, n_experts: int, alpha: float) -> None:
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList([FeedForward(d_model, d_ff) for _ in range(n_experts)])
        self.alpha = alpha

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        gates = self.router(x).softmax(-1)
        chosen = gates.argmax(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            place = chosen == i
            out[place] = gates[..., i][place][:, None] * expert(x[place][None], context)[0]
        context.auxiliary.add(
            self, "balance", self.alpha * self.imbalance(gates, chosen, context.layout.real)
        )
        return out

    def imbalance(self, gates: Tensor, chosen: Tensor, real: Tensor | None) -> Float[Tensor, ""]:
        counted = torch.ones_like(chosen, dtype=torch.bool) if real is None else real
        fractions = nn.functional.one_hot(chosen[counted], gates.shape[-1]).to(gates.dtype).mean(0)
        return gates.shape[-1] * (fractions * gates[counted].mean(0)).sum()


@dataclass(frozen=True)
class SwitchConfig(FeedForwardConfig):
    kind: ClassVar[str] = "switch"
    d_ff: int = 20
    n_experts: int = 3
    alpha: float = 0.3

    def build(self, d_model: int) -> SwitchFeedForward:
        return SwitchFeedForward(d_model, self.d_ff, self.n_experts, self.alpha)


class MixtureOfDepths(Layer):
    """x + r·f(x̃) for the tokens a router picks, x for the others (2404.02258); picked where r > 0, which is causal."""

    def __init__(self, d_model: int, block: Layer) -> None:
        super().__init__()
        self.router, self.block = nn.Linear(d_model, 1), block

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        weight = self.router(x)
        index, kept = self.route(weight.squeeze(-1), context.layout)
        wide = index[..., None].expand(-1, -1, x.shape[-1])
        picked = x.gather(1, wide)
        change = self.block(picked, context.select(index, kept), state) - picked
        change = change * weight.gather(1, index[..., None]) * kept[..., None]
        return x.scatter_add(1, wide, change)

    def route(
        self, weight: Float[Tensor, "b t"], layout: Layout
    ) -> tuple[Int[Tensor, "b c"], Bool[Tensor, "b c"]]:
        """The picked tokens of each row, in order; rows that picked fewer are filled up with others, not kept."""
        picked = weight > 0 if layout.real is None else (weight > 0) & layout.real
        order = picked.long().argsort(dim=1, descending=True, stable=True)[:, : int(picked.sum(1).max())]
        return order, picked.gather(1, order)

    def initial_state(self) -> State | None:
        return self.block.initial_state()


@dataclass(frozen=True)
class MixtureOfDepthsConfig(LayerConfig):
    kind: ClassVar[str] = "mixture_of_depths"
    block: BlockConfig

    def build(self, d_model: int) -> MixtureOfDepths:
        return MixtureOfDepths(d_model, self.block.build(d_model))


class LinearBias(Position):
    """ALiBi: −m_h·(distance) on the scores (2108.12409); the slopes stay float32 whatever the model is cast to."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.slopes = [2 ** (-8 * (h + 1) / n_heads) for h in range(n_heads)]

    def bias(self, queries: Layout, keys: Layout) -> Float[Tensor, "#b h t s"]:
        distance = queries.positions[:, None, :, None] - keys.positions[:, None, None, :]
        return -torch.tensor(self.slopes, device=distance.device)[:, None, None] * distance.abs()


@dataclass(frozen=True)
class LinearBiasConfig(PositionConfig):
    kind: ClassVar[str] = "linear_bias"
    n_heads: int = 3

    def build(self, d_model: int) -> LinearBias:
        return LinearBias(self.n_heads)


class BucketBias(Position):
    """A learned number for each head and bucket of distances, the far ones in logarithmic buckets (1910.10683)."""

    def __init__(self, n_heads: int, n_buckets: int, furthest: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_buckets, n_heads)
        self.furthest = furthest

    def bias(self, queries: Layout, keys: Layout) -> Float[Tensor, "#b h t s"]:
        distance = (queries.positions[:, :, None] - keys.positions[:, None, :]).clamp(min=0)
        exact = self.table.num_embeddings // 2
        steps = (distance.clamp(min=1) / exact).log() / math.log(self.furthest / exact)
        far = (exact + (steps * exact).long()).clamp(max=2 * exact - 1)
        return self.table(torch.where(distance < exact, distance, far)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class BucketBiasConfig(PositionConfig):
    kind: ClassVar[str] = "bucket_bias"
    n_heads: int = 3
    n_buckets: int = 6
    furthest: int = 9

    def build(self, d_model: int) -> BucketBias:
        return BucketBias(self.n_heads, self.n_buckets, self.furthest)


class RecurrentState:
    """The hidden vector after the last token."""

    def __init__(self) -> None:
        self.hidden: Float[Tensor, "b i"] | None = None

    def select(self, rows: Int[Tensor, " b"]) -> None:
        if self.hidden is not None:
            self.hidden = self.hidden[rows]


class LinearRecurrence(Layer):
    """h ← a(x) ⊙ h + B x, y = C h: a state-space model without its fast scan. Padding leaves h as it is."""

    def __init__(self, d_model: int, d_inner: int) -> None:
        super().__init__()
        self.decay, self.in_proj = nn.Linear(d_model, d_inner), nn.Linear(d_model, d_inner)
        self.out_proj = OutputProjection(d_inner, d_model)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t d"]:
        decay, entry = self.decay(x).sigmoid(), self.in_proj(x)
        layout, hidden = context.layout, None if state is None else state.hidden
        hidden = entry.new_zeros(len(entry), entry.shape[2]) if hidden is None else hidden
        outputs = [entry[:, :0]]  # a call may hold no token at all
        for t in range(x.shape[1]):
            if layout.documents is not None and t > 0:
                same = layout.documents[:, t] == layout.documents[:, t - 1]
                hidden = hidden * same[:, None]
            after = decay[:, t] * hidden + entry[:, t]
            hidden = after if layout.real is None else torch.where(layout.real[:, t, None], after, hidden)
            outputs.append(hidden[:, None])
        if state is not None:
            state.hidden = hidden
        return self.out_proj(torch.cat(outputs, dim=1))

    def initial_state(self) -> RecurrentState:
        return RecurrentState()


@dataclass(frozen=True)
class LinearRecurrenceConfig(MixerConfig):
    kind: ClassVar[str] = "linear_recurrence"
    d_inner: int = 10

    def build(self, d_model: int) -> LinearRecurrence:
        return LinearRecurrence(d_model, self.d_inner)


class Parallel(Layer):
    """Mixer(x) + FeedForward(x) as one branch under one norm: GPT-J's block (and PaLM's, 2204.02311)."""

    def __init__(self, mixer: Layer, feed_forward: Layer) -> None:
        super().__init__()
        self.mixer, self.feed_forward = mixer, feed_forward

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        return self.mixer(x, context, state) + self.feed_forward(x, context)

    def initial_state(self) -> State | None:
        return self.mixer.initial_state()


@dataclass(frozen=True)
class ParallelConfig(MixerConfig):
    kind: ClassVar[str] = "parallel"
    mixer: MixerConfig
    feed_forward: FeedForwardConfig

    def build(self, d_model: int) -> Parallel:
        return Parallel(self.mixer.build(d_model), self.feed_forward.build(d_model))


@dataclass(frozen=True)
class PlainFeedForwardConfig(LayerConfig):
    """A layer of a stack that is no block: it needs no state at all."""

    kind: ClassVar[str] = "plain_feed_forward"

    def build(self, d_model: int) -> Layer:
        return FeedForward(d_model, 20)
