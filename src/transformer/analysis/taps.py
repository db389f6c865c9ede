"""Read any model from outside: the output of every module, and the weights of every attention.

A tap is an address: a module's path, as `named_modules` gives it, stands for what that module returns, and
`PATH.weights` for the attention weights of the attention at that path. A decision that has several parts, such as a
router's, has them as `PATH.experts`, `PATH.gates` and so on. Models hold no code for this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, cast

from jaxtyping import Float, Inexact
from torch import Tensor, nn

from ..base.sockets import Pairs, Scoring
from ..enhancements.attention.naive import attention_weights
from ..enhancements.ssm.forms import best_scan
from ..generation import evaluating
from ..models import Model


def trace(model: nn.Module, *inputs: Tensor | None, taps: str | Sequence[str] = "*") -> dict[str, Tensor]:
    """Run `model(*inputs)` without dropout and gradients, and return what the taps saw, in the order of the call.

    taps: patterns of addresses, in which `*` stands for any text: `*.weights` is every attention's weights
    (`Float[b h t s]`), `encoder.blocks.0` one block's output (`Float[b s d]`), `lm_head` the logits. A module that
    is called again in the same pass, as the embedding is for the target, has the address `PATH#2` then.

    The weights are those of the definition, whatever kernel the model computes with; the model's own kernel still
    makes the output, so every tensor is the one that a call without taps makes. Afterwards the model is as it was.

    ValueError for a pattern that no address matches, naming the nearest address.
    """
    # what torch.compile makes is a graph, which has no modules to tap: go by the model that it was made of
    plain = cast(Model, getattr(model, "_orig_mod", model))
    recorder = _Recorder((taps,) if isinstance(taps, str) else tuple(taps))
    with evaluating(plain), observing(plain, recorder):
        plain.forward(*inputs)  # type: ignore[arg-type]
    for pattern in recorder.patterns:
        if not any(fnmatchcase(address, pattern) for address in recorder.addresses):
            near = get_close_matches(pattern, recorder.addresses, n=1, cutoff=0)
            raise ValueError(f"no tap matches {pattern!r}; the nearest is {near[0]!r}")
    return recorder.seen


class Observer:
    """Is told of every call inside a model; overrides what it wants to know."""

    def on_module(self, path: str, module: nn.Module, output: Any) -> None:
        """The module at `path` returned `output`."""

    def on_attention(
        self,
        path: str,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b k s e"],
        v: Float[Tensor, "b k s _"],
        pairs: Pairs,
        scoring: Scoring,
    ) -> None:
        """The module at `path` is about to attend from these queries to these keys."""

    def on_scan(
        self,
        path: str,
        x: Float[Tensor, "b t h e"],
        dt: Float[Tensor, "#b #t #h"],
        A: Inexact[Tensor, "h #n"],
        B: Inexact[Tensor, "#b #t k n"],
        C: Inexact[Tensor, "#b #t k n"],
    ) -> None:
        """The state-space model at `path` is about to run its recurrence."""


@contextmanager
def observing(model: Model, observer: Observer) -> Iterator[None]:
    """Tell `observer` of every call of `model`'s modules inside a `with` block; then all is as it was."""
    execution, running, hooks = model.execution, [""], []

    def enter(path: str) -> None:
        running.append(path)

    def leave(module: nn.Module, output: Any) -> None:
        observer.on_module(running.pop(), module, output)

    def kernel(q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, scoring: Scoring) -> Float[Tensor, "b h t _"]:
        observer.on_attention(running[-1], q, k, v, pairs, scoring)
        return execution.kernel(q, k, v, pairs, scoring)

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        observer.on_scan(running[-1], x, dt, A, B, C)
        return (execution.scan or best_scan)(x, dt, A, B, C, *rest)

    try:
        for path, module in model.named_modules():
            if path:
                hooks.append(module.register_forward_pre_hook(lambda *_, path=path: enter(path)))
                hooks.append(module.register_forward_hook(lambda module, _, output: leave(module, output)))
        model.execution = replace(execution, kernel=kernel, scan=scan)
        yield
    finally:
        model.execution = execution
        for hook in hooks:
            hook.remove()


class _Recorder(Observer):
    """Keeps what the patterns ask for, by address."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns
        self.seen: dict[str, Tensor] = {}
        self.addresses: dict[str, None] = {}
        self._calls: dict[str, int] = {}

    def on_module(self, path: str, module: nn.Module, output: Any) -> None:
        named = {path: output}
        if is_dataclass(output):
            named = {f"{path}.{field.name}": getattr(output, field.name) for field in fields(output)}
        for name, tensor in named.items():
            if isinstance(tensor, Tensor) and (address := self._wanted(name)):
                self.seen[address] = tensor.detach().clone()  # a later module may write into it

    def on_attention(
        self, path: str, q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, scoring: Scoring
    ) -> None:
        if address := self._wanted(f"{path}.weights"):
            self.seen[address] = attention_weights(q, k, pairs, scoring).to(q.dtype)

    def _wanted(self, path: str) -> str | None:
        """Note this call, and return its address if a pattern asks for it."""
        calls = self._calls[path] = self._calls.get(path, 0) + 1
        address = path if calls == 1 else f"{path}#{calls}"
        self.addresses[address] = None
        return address if any(fnmatchcase(address, pattern) for pattern in self.patterns) else None
