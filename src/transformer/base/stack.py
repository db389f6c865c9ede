"""Encoder and decoder stacks (arXiv 1706.03762 §3.1): blocks of sub-layers, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt, MinLen
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .cache import GROWING, Storage, prepared
from .normalization import LayerNormConfig, NoNormConfig
from .position import SinusoidalPositionConfig
from .sockets import (
    Config,
    Context,
    FeedForwardConfig,
    Layer,
    LayerConfig,
    Layout,
    MixerConfig,
    NormConfig,
    Position,
    PositionConfig,
    State,
    WiringConfig,
)
from .wiring import Dropout, PostNormConfig


class BlockState:
    """The states of a block's sub-layers, by name."""

    def __init__(self, sublayers: dict[str, State | None]) -> None:
        self.sublayers = sublayers

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order."""
        for state in self.sublayers.values():
            if state is not None:
                state.select(rows)

    def truncate(self, ends: Int[Tensor, "b 1"]) -> None:
        """Forget the tokens of each row at position `ends` and later."""
        for state in self.sublayers.values():
            if state is not None:
                state.truncate(ends)  # type: ignore[attr-defined]  # `prepared` saw that it can

    def prepared(self, storage: Storage) -> BlockState:
        """The empty state that keeps the same, as `storage` says."""
        return BlockState({name: prepared(state, storage) for name, state in self.sublayers.items()})


class Block(Layer):
    """The sub-layers of one layer of a stack, in order: `mixer`, `cross_attention`, `feed_forward`.

    Each is a wiring around its branch; an encoder block has no cross-attention, and any may be left out.
    """

    def __init__(self, sublayers: dict[str, Layer]) -> None:
        super().__init__()
        self.order = tuple(sublayers)
        for name, sublayer in sublayers.items():
            self.add_module(name, sublayer)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t _"]:
        """Apply each sub-layer to what the one before it returned."""
        states = {} if state is None else state.sublayers
        for name in self.order:
            x = getattr(self, name)(x, context, states.get(name))
        return x

    def initial_state(self) -> BlockState:
        sublayers = {name: self.get_submodule(name) for name in self.order}
        return BlockState(
            {name: layer.initial_state() for name, layer in sublayers.items() if isinstance(layer, Layer)}
        )


class PositionedBlock(Block):
    """A block with a position scheme of its own, used instead of its stack's."""

    def __init__(self, sublayers: dict[str, Layer], position: Position) -> None:
        if type(position).embed is not Position.embed:
            raise ValueError(
                f"a block's own position acts inside its mixer, but {type(position).__name__} is added to the "
                "embeddings; give it to the stack, or the block one that rotates or biases"
            )
        super().__init__(sublayers)
        self.position = position

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: Any = None
    ) -> Float[Tensor, "b t _"]:
        """Apply each sub-layer under this block's position scheme."""
        return super().forward(x, replace(context, position=self.position), state)


@dataclass(frozen=True)
class BlockConfig(LayerConfig):
    """One layer of a stack: its sub-layers, how they are wired and normed, and a position scheme if it has its own."""

    kind: ClassVar[str] = "block"
    mixer: MixerConfig | None
    feed_forward: FeedForwardConfig | None
    cross_attention: MixerConfig | None = None
    wiring: WiringConfig = PostNormConfig()
    norm: NormConfig = LayerNormConfig()
    position: PositionConfig | None = None

    def build(self, d_model: int) -> Block:
        branches = {
            "mixer": self.mixer,
            "cross_attention": self.cross_attention,
            "feed_forward": self.feed_forward,
        }
        sublayers: dict[str, Layer] = {
            name: self.wiring.build(d_model, branch.build(d_model), self.norm)
            for name, branch in branches.items()
            if branch is not None
        }
        return (
            Block(sublayers)
            if self.position is None
            else PositionedBlock(sublayers, self.position.build(d_model))
        )


class StackState:
    """The states of a stack's blocks, and how many tokens each row has had."""

    def __init__(self, blocks: list[Any], storage: Storage = GROWING) -> None:
        self.blocks = [prepared(block, storage) for block in blocks]
        self.rollback = storage.rollback
        self.length = 0
        self.counts: Int[Tensor, "b 1"] | None = None

    def place(self, tokens: Int[Tensor, "b t"], real: Bool[Tensor, "b t"] | None) -> Layout:
        """Number new tokens on from those already seen; padding takes no number."""
        layout = Layout.of(tokens, real)
        if self.counts is not None:
            layout = replace(layout, positions=layout.positions + self.counts)
        grown = torch.full_like(tokens[:, :1], tokens.shape[1]) if real is None else real.sum(1, keepdim=True)
        self.counts = grown if self.counts is None else self.counts + grown
        self.length += tokens.shape[1]
        return layout

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order; a row may be repeated."""
        if self.counts is not None:
            self.counts = self.counts[rows]
        for block in self.blocks:
            if block is not None:
                block.select(rows)

    def truncate(self, ends: Int[Tensor, "b 1"]) -> None:
        """Forget the tokens of each row that have the number `ends` or a later one, counted from 0."""
        assert self.counts is not None, "nothing has been read yet"
        most, before = int((self.counts - ends).amax()), int(self.counts.amax())
        if most > self.rollback:
            raise ValueError(
                f"{most} tokens are to be taken back, and this state can take back {self.rollback}; "
                f"ask initial_state for a Storage with rollback {most} or more"
            )
        self.counts = torch.minimum(self.counts, ends)
        self.length -= before - int(self.counts.amax())
        for block in self.blocks:
            if block is not None:
                block.truncate(ends)


class Stack(nn.Module):
    """N blocks, one position scheme for all of them, and a norm at the end where the wiring needs one.

    Dropout falls on the sum of the embeddings and the position encodings (§5.4).
    """

    def __init__(self, blocks: list[Layer], position: Position, norm: nn.Module, dropout: float) -> None:
        super().__init__()
        self.position, self.dropout = position, Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(
        self, x: Float[Tensor, "b t _"], context: Context, state: StackState | None = None
    ) -> Float[Tensor, "b t d"]:
        """Turn embeddings, as wide as `embed` takes them, into the hidden states of the last block."""
        context = replace(context, position=self.position)
        x = self.embed(x, context.layout)
        states = [None] * len(self.blocks) if state is None else state.blocks
        for block, kept in zip(self.blocks, states, strict=True):
            x = context.execution.run(block, x, context, kept)
        return self.norm(x)  # type: ignore[no-any-return]

    def embed(self, x: Float[Tensor, "b t d"], layout: Layout) -> Float[Tensor, "b t d"]:
        """Turn token embeddings into the input of the first block."""
        return self.dropout(self.position.embed(x, layout))  # type: ignore[no-any-return]

    def initial_state(self, storage: Storage = GROWING) -> StackState:
        """An empty state for decoding."""
        states = [block.initial_state() for block in self.blocks if isinstance(block, Layer)]
        return StackState(states, storage)


@dataclass(frozen=True)
class StackConfig(Config):
    """A tuple of blocks, which need not be alike, and the position scheme they share."""

    kind: ClassVar[str] = "stack"
    blocks: Annotated[tuple[LayerConfig, ...], MinLen(1)]
    position: PositionConfig = SinusoidalPositionConfig()
    norm: NormConfig = NoNormConfig()
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1

    def build(self, d_model: int) -> Stack:
        blocks = [block.build(d_model) for block in self.blocks]
        return Stack(blocks, self.position.build(d_model), self.norm.build(d_model), self.dropout)


def check_length(length: int, stack: Stack, name: str) -> None:
    """Refuse a sequence that the stack's position scheme cannot number."""
    limit = stack.position.max_seq_len
    if limit is not None and length > limit:
        raise ValueError(
            f"the {name} has {length} tokens, more than max_seq_len {limit}; "
            f"shorten it or build the model with max_seq_len={length} or more"
        )
