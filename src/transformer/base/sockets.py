"""The sockets: what every part of a Transformer agrees on, so that any part can take another's place.

A model is a value (a tree of frozen `Config`s) that is built into modules. A module that mixes tokens, or
transforms each of them, has one signature, `forward(x, context, state) -> x`:

- `x` is the residual stream, `Float[b t d]`;
- `Context` says everything else about this call: where the tokens stand (`Layout`), who may see whom (`Mask`),
  how position enters (`Position`), the encoder's output (`Memory`), how to execute it (`Execution`);
- `state` is what was kept from earlier calls when decoding step by step: a key-value cache, a recurrent state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Le, Lt
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Size = Annotated[int, Ge(1), Le(2**20)]
"""A width or a number of heads or tokens: bounded, so that a slip of the finger is refused before it takes memory."""
Depth = Annotated[int, Ge(1), Le(1024)]
"""A number of layers."""
Probability = Annotated[float, Ge(0), Lt(1)]
"""A probability of dropping an entry."""


@dataclass(frozen=True)
class Config:
    """A part as data. `kind` is its name in the catalog and in YAML; each socket below adds its `build`."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class Layout:
    """Where each token of a sequence stands; the mask and every position scheme are functions of it.

    positions: `Int[b t]` (or `[1 t]` for all rows alike), growing along a row within a document.
    real: `Bool[b t]`, False for padding; None when there is none.
    documents: `Int[b t]`, which document of a packed row a token belongs to; None when rows are not packed.
    """

    positions: Int[Tensor, "#b t"]
    real: Bool[Tensor, "b t"] | None = None
    documents: Int[Tensor, "#b t"] | None = None

    @classmethod
    def of(
        cls,
        tokens: Int[Tensor, "b t"],
        real: Bool[Tensor, "b t"] | None = None,
        documents: Int[Tensor, "b t"] | None = None,
    ) -> Layout:
        """Number the tokens of each row, or of each document in it, from 0, counting only the real ones."""
        index = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if documents is not None:
            begins = torch.ones_like(documents, dtype=torch.bool)
            begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
            index = index - (index * begins).cummax(dim=1).values
        elif real is not None:
            index = (real.long().cumsum(1) - 1).clamp(min=0)
        return cls(index, real, documents)

    def select(self, index: Int[Tensor, "b c"], kept: Bool[Tensor, "b c"] | None = None) -> Layout:
        """Keep only the tokens at `index` of each row, with the positions they had.

        `kept` is False where an index only fills up a row that keeps fewer tokens than another; None when none does.
        """
        rows = len(index)
        real, documents = (
            None if x is None else x.expand(rows, -1).gather(1, index) for x in (self.real, self.documents)
        )
        if kept is not None:
            real = kept if real is None else real & kept
        return Layout(self.positions.expand(rows, -1).gather(1, index), real, documents)

    def rows(self, index: Int[Tensor, " b"]) -> Layout:
        """Keep only the rows at `index` (beam search repeats, reorders and drops rows)."""
        positions = self.positions if len(self.positions) == 1 else self.positions[index]
        real, documents = (x if x is None or len(x) == 1 else x[index] for x in (self.real, self.documents))
        return Layout(positions, real, documents)

    def append(self, other: Layout, batch: int) -> Layout:
        """These tokens followed by `other`, for `batch` rows."""
        sides = (self, other)
        positions = torch.cat([side.positions.expand(batch, -1) for side in sides], dim=1)
        real, documents = None, None
        if any(side.real is not None for side in sides):
            real = torch.cat([side._real().expand(batch, -1) for side in sides], dim=1)
        if any(side.documents is not None for side in sides):
            documents = torch.cat([side._documents().expand(batch, -1) for side in sides], dim=1)
        return Layout(positions, real, documents)

    def _real(self) -> Bool[Tensor, "#b t"]:
        return torch.ones_like(self.positions, dtype=torch.bool) if self.real is None else self.real

    def _documents(self) -> Int[Tensor, "#b t"]:
        return torch.zeros_like(self.positions) if self.documents is None else self.documents


@dataclass(frozen=True)
class Mask:
    """Who may see whom, as a rule rather than a matrix.

    causal: a query sees no key at a later position. window: it sees only keys fewer than `window` positions away.
    Padding is never seen, nor another document. The rule compares *positions*, so it needs no special case for a
    cache, for packed rows, or for a layer that runs on some of the tokens.
    """

    causal: bool = False
    window: int | None = None

    def visible(self, queries: Layout, keys: Layout) -> Bool[Tensor, "#b #t s"] | None:
        """The rule as a matrix, or None when every query sees every key."""
        distance = queries.positions[:, :, None] - keys.positions[:, None, :]
        rules = []
        if self.causal:
            rules.append(distance >= 0)
        if self.window is not None:
            rules.append(distance.abs() < self.window)
        if keys.real is not None:
            rules.append(keys.real[:, None, :])
        if queries.documents is not None and keys.documents is not None:
            rules.append(queries.documents[:, :, None] == keys.documents[:, None, :])
        if not rules:
            return None
        seen = rules[0]
        for rule in rules[1:]:
            seen = seen & rule
        return seen


class Position(nn.Module):
    """How order enters a stack. A scheme overrides the sites it needs; this one, used as it is, knows no order.

    max_seq_len: the first position the scheme cannot express; None when it knows no end.
    """

    max_seq_len: int | None = None

    def embed(self, x: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """Add to the token embeddings (sinusoidal, learned)."""
        return x

    def rotate(
        self, q: Float[Tensor, "b h t e"], k: Float[Tensor, "b k t e"], layout: Layout
    ) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b k t e"]]:
        """Turn this call's queries and keys by their positions, before the keys are cached (rotary)."""
        return q, k

    def bias(self, queries: Layout, keys: Layout) -> Float[Tensor, "#b h t s"] | None:
        """Add to the attention scores (ALiBi, relative)."""
        return None


NO_POSITION = Position()


class Pairs:
    """Every query of a call with every key it is scored against: what an attention kernel needs to know of them."""

    def __init__(self, queries: Layout, keys: Layout, mask: Mask, position: Position) -> None:
        self.queries, self.keys, self.mask = queries, keys, mask
        self.bias = position.bias(queries, keys)
        self._dense: tuple[Tensor | None] | None = None

    @property
    def visible(self) -> Bool[Tensor, "#b 1 #t s"] | None:
        """The mask as a matrix that broadcasts over heads; made on first use, since a fused kernel may not need it."""
        if (
            torch.compiler.is_compiling()
        ):  # a compiler shares what is computed twice, and must not see it stored
            return self._matrix()
        if self._dense is None:
            self._dense = (self._matrix(),)
        return self._dense[0]

    def _matrix(self) -> Bool[Tensor, "#b 1 #t s"] | None:
        seen = self.mask.visible(self.queries, self.keys)
        return None if seen is None else seen[:, None]

    @property
    def triangular(self) -> bool:
        """Whether the mask is exactly the lower triangle: causal, one sequence, nothing padded, packed or cached."""
        plain = self.keys.real is None and self.keys.documents is None and self.mask.window is None
        return plain and self.mask.causal and self.keys is self.queries


@dataclass(frozen=True)
class Scoring:
    """How the product of a query and a key becomes a weight, whoever the two are.

    scale: multiplies the product. dropout: the probability of dropping a weight. soft_cap: the scaled product is
    squashed into ±soft_cap, before a position's bias is added. sinks: for each head a score that takes part in the
    softmax and has no value. The paper has the first two only.
    """

    scale: float
    dropout: float = 0.0
    soft_cap: float | None = None
    sinks: Float[Tensor, " h"] | None = None


@runtime_checkable
class Kernel(Protocol):
    """The computation of attention: the same function whichever way it is computed.

    Query heads may share keys and values: head i of h goes by key-value head ⌊i·k/h⌋. Values may be wider or
    narrower than keys.
    """

    def __call__(
        self,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b k s e"],
        v: Float[Tensor, "b k s _"],
        pairs: Pairs,
        scoring: Scoring,
    ) -> Float[Tensor, "b h t _"]: ...


@dataclass(frozen=True)
class Execution:
    """How to compute, never what: no choice made here changes a model's architecture or its checkpoint.

    kernel: the attention kernel. checkpoint: recompute each block's activations in the backward pass instead of
    keeping them (arXiv 1604.06174): memory for one block instead of all, for one more forward pass. dispatch: how
    tokens are brought to their experts; null is the fastest way. scan: the form of a state-space model's recurrence;
    null is the best one for the device and the case.
    """

    kernel: Kernel
    checkpoint: bool = False
    dispatch: Callable[..., Tensor] | None = None
    scan: Callable[..., tuple[Tensor, Tensor]] | None = None

    def run(
        self, block: nn.Module, x: Float[Tensor, "b t d"], context: Context, state: Any
    ) -> Float[Tensor, "b t _"]:
        """Run one block of a stack; it may return several streams side by side, for the stack's norm to unite."""
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(block, x, context, state, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x, context, state)  # type: ignore[no-any-return]


class AuxiliaryLosses:
    """Collects the losses that parts add to the objective: a router's balance, a regularizer; already weighted.

    Each is kept under the module that made it, so a block that checkpointing runs a second time replaces its loss
    instead of adding to it.
    """

    def __init__(self) -> None:
        self._losses: dict[tuple[int, str], Tensor] = {}
        self._counted: dict[int, bool] = {}

    def first(self, module: nn.Module) -> bool:
        """Whether `module` asks this for the first time in this call, and not because checkpointing runs it again."""
        again = self._counted.get(id(module), False)
        self._counted[id(module)] = True
        return not again

    def add(self, module: nn.Module, name: str, loss: Float[Tensor, ""]) -> None:
        """Add `loss` (a scalar, weighted) under the name that `module` gives it."""
        self._losses[id(module), name] = loss

    def total(self) -> Tensor:
        """The sum of all, a scalar; zero when no part added any."""
        return torch.stack(list(self._losses.values())).sum() if self._losses else torch.zeros(())

    def named(self) -> dict[str, Tensor]:
        """The sum of each kind of loss over the modules that added it, detached, for the log."""
        sums: dict[str, Tensor] = {}
        for (_, name), loss in self._losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + loss.detach()
        return sums


@dataclass(frozen=True)
class Memory:
    """The encoder's output, which the decoder attends to, and where its tokens stand."""

    hidden: Float[Tensor, "b s d"]
    layout: Layout


@dataclass(frozen=True)
class Context:
    """Everything a layer is told about a call besides its input."""

    layout: Layout
    mask: Mask
    execution: Execution
    position: Position = field(default_factory=lambda: NO_POSITION)
    memory: Memory | None = None
    auxiliary: AuxiliaryLosses = field(default_factory=AuxiliaryLosses)

    pairs: Pairs = field(init=False)
    memory_pairs: Pairs | None = field(init=False)

    def __post_init__(self) -> None:
        """Pair this call's tokens with themselves, once for all layers, and with the encoder's: those are all seen."""
        object.__setattr__(self, "pairs", self.pair(self.layout))
        memory = self.memory and Pairs(self.layout, self.memory.layout, Mask(), NO_POSITION)
        object.__setattr__(self, "memory_pairs", memory)

    def pair(self, keys: Layout, mask: Mask | None = None) -> Pairs:
        """This call's tokens with `keys`, under the stack's mask or a layer's own."""
        return Pairs(self.layout, keys, self.mask if mask is None else mask, self.position)

    def select(self, index: Int[Tensor, "b c"], kept: Bool[Tensor, "b c"] | None = None) -> Context:
        """The same call for some of its tokens only; `Layout.select` says what the arguments mean."""
        return replace(self, layout=self.layout.select(index, kept))


@runtime_checkable
class State(Protocol):
    """What a layer keeps between decoding steps. Made by the layer, handed back to it, never stored on it."""

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order."""


class Layer(nn.Module):
    """The one socket of mixers, feed-forwards, wirings and blocks."""

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t d"]:
        """Map the residual stream to a branch's output (mixer, feed-forward) or to itself, changed (block)."""
        raise NotImplementedError

    def initial_state(self) -> State | None:
        """An empty state for decoding; None for a layer that needs none because it sees one token at a time."""
        return None


class OutputProjection(nn.Linear):
    """A linear map that writes to the residual stream; a type of its own, so that initialization can find it."""


class LayerConfig(Config):
    """A mixer, a feed-forward or a block, as data."""

    def build(self, d_model: int) -> Layer:
        raise NotImplementedError


class MixerConfig(LayerConfig):
    """Mixes tokens: attention, a state-space model, a convolution."""


class FeedForwardConfig(LayerConfig):
    """Transforms each token by itself: an MLP, a gated unit, experts."""


class NormConfig(Config):
    """A normalization, as data."""

    def build(self, d_model: int) -> nn.Module:
        raise NotImplementedError


class PositionConfig(Config):
    """A position scheme, as data."""

    def build(self, d_model: int) -> Position:
        raise NotImplementedError


class WiringConfig(Config):
    """How a branch is attached to the residual stream, as data."""

    def build(self, d_model: int, branch: Layer, norm: NormConfig) -> Layer:
        raise NotImplementedError


class InitializationConfig(Config):
    """A rule for the first weights, as data; it goes by the type of a module, never by its name."""

    def initialize(self, model: nn.Module) -> None:
        raise NotImplementedError


Enhancement = Callable[[Any], Any]
"""An enhancement is a function from a config to a config."""
