"""Mixture of experts (Shazeer et al. 2017, arXiv 1701.06538; in Transformers: GShard, arXiv 2006.16668).

    y = Σ_{i chosen} g_i(x) E_i(x)  [ + S(x) ]

The feed-forward part becomes x networks E_i (`experts`), of which a router chooses k for each token, and perhaps one
that every token uses (`shared`: arXiv 2401.06066 §3.2). Fine-grained experts (its §3.1) are more and narrower ones: a
d_ff of 1/m, m times as many, and m times the k. Nothing is dropped unless a capacity is set. What routers, losses and
capacity are is said in the files beside this one.

Cost a token: that of k experts, of the shared one, and d_model·x for the router; the weights of all x are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, TypeVar

from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor, nn

from ....base.feed_forward import PlainFeedForwardConfig
from ....base.sockets import Config, Context, Enhancement, FeedForwardConfig, Layer
from ....base.stack import StackConfig
from ...compose import has_part, replace_parts
from ...feed_forward.clamped_glu import ClampedGatedFeedForwardConfig
from ...feed_forward.glu import GatedFeedForwardConfig
from .capacity import Capacity
from .dispatch import Slots, grouped_dispatch
from .experts import Experts
from .losses import BalanceLossConfig, RouterLossConfig
from .routing import Router, RouterConfig
from .softmax import SoftmaxAfterTopKConfig

C = TypeVar("C", bound=Config)
Count = Annotated[int, Ge(1)]
EXPERTS = (PlainFeedForwardConfig, GatedFeedForwardConfig, ClampedGatedFeedForwardConfig)
"""The networks that an expert can be."""


class MixtureOfExperts(Layer):
    """Networks of which each token uses those that a router chooses."""

    def __init__(
        self, router: Router, experts: Experts, capacity: nn.Module, losses: Sequence[RouterLossConfig]
    ) -> None:
        super().__init__()
        self.router, self.experts, self.capacity = router, experts, capacity
        self.losses = [(loss.kind, loss.build()) for loss in losses]

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Let each token's experts transform it."""
        routing = self.capacity(self.router(x, context))
        for name, loss in self.losses:
            context.auxiliary.add(self, name, loss(routing))
        dispatch = context.execution.dispatch or grouped_dispatch
        return dispatch(self.experts, x, Slots.of(routing))

    def idle_weights(self) -> int:
        """How many of the weights a token does not use."""
        share = 1 - self.router.top_k / self.experts.n_experts
        return round(share * sum(parameter.numel() for parameter in self.experts.parameters()))


class SharedMixtureOfExperts(MixtureOfExperts):
    """The same, and a network that every token uses."""

    def __init__(self, shared: Layer, *parts: Any) -> None:
        super().__init__(*parts)
        self.shared = shared

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Add what every token's network makes to what its experts make."""
        return super().forward(x, context) + self.shared(x, context)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MixtureOfExpertsConfig(FeedForwardConfig):
    """A feed-forward part of several networks.

    experts: one of them. shared: one for every token besides. capacity_factor: of what an even share would be, how much
    an expert takes of a sequence in training; null is all. losses: added to the objective.
    """

    kind: ClassVar[str] = "mixture_of_experts"
    n_experts: Count = 8
    experts: FeedForwardConfig = GatedFeedForwardConfig()
    router: RouterConfig = SoftmaxAfterTopKConfig()
    shared: FeedForwardConfig | None = None
    capacity_factor: Annotated[float, Gt(0)] | None = None
    losses: tuple[RouterLossConfig, ...] = (BalanceLossConfig(),)

    def build(self, d_model: int) -> MixtureOfExperts:
        parts = (
            self.router.build(d_model, self.n_experts),
            Experts(d_model, self.n_experts, self.experts),
            nn.Identity() if self.capacity_factor is None else Capacity(self.capacity_factor),
            self.losses,
        )
        if self.shared is None:
            return MixtureOfExperts(*parts)
        return SharedMixtureOfExperts(self.shared.build(d_model), *parts)


def mixture_of_experts(
    n_experts: int = 8,
    router: RouterConfig = SoftmaxAfterTopKConfig(),  # noqa: B008 (frozen)
    *,
    d_ff: int | None = None,
    shared: FeedForwardConfig | None = None,
    capacity_factor: float | None = None,
    losses: tuple[RouterLossConfig, ...] = (BalanceLossConfig(),),
    every: int = 1,
    first: int = 0,
) -> Enhancement:
    """Turn feed-forward networks into mixtures of them.

    d_ff: of an expert; null is that of the network it was. every, first: of a stack, each `every`-th block becomes
    one (Switch and GShard: 2), after the `first` blocks (DeepSeek: 1 to 3).
    """
    if every < 1 or first < 0:
        raise ValueError(f"every is 1 or more and first 0 or more, got {every} and {first}")

    def mix(part: FeedForwardConfig) -> FeedForwardConfig:
        if not isinstance(part, EXPERTS):
            return part  # a mixture already, or what cannot be an expert
        expert = part if d_ff is None else replace(part, d_ff=d_ff)
        return MixtureOfExpertsConfig(n_experts, expert, router, shared, capacity_factor, losses)

    def mix_all(config: C) -> C:
        return replace_parts(config, FeedForwardConfig, mix)

    def mix_stack(stack: StackConfig) -> StackConfig:
        chosen = [i >= first and (i - first + 1) % every == 0 for i in range(len(stack.blocks))]
        blocks = (mix_all(b) if here else b for b, here in zip(stack.blocks, chosen, strict=True))
        return replace(stack, blocks=tuple(blocks))

    def apply(config: C) -> C:
        return (
            replace_parts(config, StackConfig, mix_stack)
            if has_part(config, StackConfig)
            else mix_all(config)
        )

    return apply
