"""What decoding needs of a model: states that are passed in the open, and one call for the next tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..base.cache import GROWING, Storage

S = TypeVar("S", bound="State")
M = TypeVar("M")


@runtime_checkable
class State(Protocol):
    """What a model remembers of the tokens it was given: key-value caches, recurrent states."""

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order; a row may be repeated."""


@runtime_checkable
class Model(Protocol):
    """What `torch.nn.Module` gives every model."""

    def modules(self) -> Iterator[nn.Module]: ...

    def parameters(self) -> Iterator[Tensor]: ...


@runtime_checkable
class Decoder(Model, Protocol[S]):
    """A decoder-only model.

    `stack.position.max_seq_len` is the number of tokens that it can number, None for any number.
    """

    stack: Any

    def initial_state(self, storage: Storage = GROWING) -> S:
        """Return the state before the first token; `storage` says how it is kept."""

    def decode(
        self, tokens: Int[Tensor, "b t"], state: S, attention_mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t v"]:
        """Return the logits after each of these next tokens; `state` remembers those before them."""


@runtime_checkable
class EncoderDecoder(Model, Protocol[M, S]):
    """A model that reads a source and writes a target.

    `decoder.position.max_seq_len` is the number of target tokens that it can number, None for any number.
    """

    decoder: Any

    def encode(
        self,
        source: Int[Tensor, "b s"],
        source_mask: Bool[Tensor, "b s"] | Int[Tensor, "b s"] | None = None,
    ) -> M:
        """Return what the decoder is to know of the source."""

    def initial_state(self, memory: M) -> S:
        """Return the state before the first target token."""

    def decode(self, target: Int[Tensor, "b t"], state: S) -> Float[Tensor, "b t v"]:
        """Return the logits after each of these next target tokens."""


@contextmanager
def evaluating(model: Model, parts: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Switch dropout off (the model's eval mode) and gradients too; afterwards the mode is as it was.

    parts: all modules of the model, for a caller who comes back for every token and has looked for them once.
    """
    modules = [module for module in (model.modules() if parts is None else parts) if module.training]
    try:
        for module in modules:
            module.training = False
        with (
            torch.no_grad()
        ):  # not inference_mode: a table that a module makes and keeps must serve training too
            yield
    finally:
        for module in modules:
            module.training = True
