"""Decoding with a compiled step: what one token takes as one program, instead of some hundred operations in turn.

For a small model on a CPU, calling operations is most of a step's time. `torch.compile` makes one of many; what is
computed stays the same, but for rounding, and so does the state. It needs a C++ compiler and takes most of a minute
before the second token, so it is for many texts or long ones. Prompts, and guesses that are checked several at a time,
are read as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from ..base.cache import GROWING, Storage
from .protocol import Decoder, State

S = TypeVar("S", bound=State)


class Compiled(Generic[S]):
    """A decoder whose step is compiled when it is first used; give it to `generate` in the model's place.

    backend: of `torch.compile`. The model itself stays as it was. A step that sees new shapes, such as a batch of
    another size, is compiled anew; so is one with a cache that grows, but after a few lengths for all of them.
    """

    def __init__(self, model: Decoder[S], backend: str | Callable[..., Any] = "inductor") -> None:
        self.model, self.stack = model, model.stack
        if hasattr(model, "config"):
            self.config: Any = model.config
        self._step: Any = torch.compile(model.decode, backend=backend)

    def modules(self) -> Iterator[nn.Module]:
        """Return the model's modules."""
        return self.model.modules()

    def parameters(self) -> Iterator[Tensor]:
        """Return the model's weights."""
        return self.model.parameters()

    def initial_state(self, storage: Storage = GROWING) -> S:
        """Return the model's state before the first token."""
        return self.model.initial_state(storage)

    def decode(
        self, tokens: Int[Tensor, "b t"], state: S, attention_mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t v"]:
        """Return the logits after each of these next tokens, of a single one by the compiled step.

        ValueError where it cannot be compiled, for want of a C++ compiler for example.
        """
        if tokens.shape[1] != 1 or attention_mask is not None:
            return self.model.decode(tokens, state, attention_mask)
        try:
            return self._step(tokens, state)  # type: ignore[no-any-return]
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise ValueError(
                f"the step cannot be compiled on this machine ({reason}); install a C++ compiler, or do without"
            ) from None
