"""Weights by other names: rules that say how tensors of one library are those of the other, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...training.strict_json import CheckpointError
from .hollow import fill

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Rule:
    """Some of their tensors are some of ours: `read` makes ours of theirs, `write` theirs of ours."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[[Tensors], Tensors]
    write: Callable[[Tensors], Tensors]


@runtime_checkable
class Source(Protocol):
    """Named tensors that are read one at a time, or some rows at a time."""

    where: str

    @property
    def names(self) -> frozenset[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def get(self, name: str) -> Tensor: ...

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield one tensor, some rows at a time; each is gone when the next is asked for."""


def same(theirs: str, ours: str) -> Rule:
    """One tensor under two names."""
    return Rule((theirs,), (ours,), list, list)


def transposed(theirs: str, ours: str) -> Rule:
    """A matrix that they store with its input axis first."""
    return Rule((theirs,), (ours,), lambda x: [x[0].T], lambda x: [x[0].T])


def stacked(theirs: str, ours: Sequence[str], sizes: Sequence[int], axis: int = 0) -> Rule:
    """Tensors of ours, `sizes` long, that they keep as one, end to end."""
    return Rule(
        (theirs,),
        tuple(ours),
        lambda x: torch.split(x[0], list(sizes), dim=axis),
        lambda x: [torch.cat(list(x), dim=axis)],
    )


def reordered(
    theirs: str, ours: str, read: Callable[[Tensor], Tensor], write: Callable[[Tensor], Tensor]
) -> Rule:
    """One tensor in another order of its entries."""
    return Rule((theirs,), (ours,), lambda x: [read(x[0])], lambda x: [write(x[0])])


def linear(theirs: str, ours: str, bias: bool = False) -> list[Rule]:
    """A linear map or a norm: its weight, and its bias if it has one."""
    names = ("weight", "bias") if bias else ("weight",)
    return [same(f"{theirs}.{name}", f"{ours}.{name}") for name in names]


@torch.no_grad()
def read_weights(
    model: nn.Module, rules: Sequence[Rule], source: Source, ignored: Callable[[str], bool]
) -> None:
    """Copy the source's tensors into the model, one rule at a time; anything missing or left over is refused.

    ignored: their names that hold no weights of ours, such as tables and second copies of tied weights.
    """
    targets, wanted = model.state_dict(keep_vars=True), {name for rule in rules for name in rule.theirs}
    if missing := sorted(wanted - source.names):
        raise CheckpointError(f"{source.where} has no tensor {missing[0]!r}")
    if unknown := sorted(name for name in source.names - wanted if not ignored(name)):
        raise CheckpointError(
            f"{source.where} has the tensor {unknown[0][:200]!r}, which its config.json has no use for"
        )
    made: dict[int, nn.Parameter] = {}
    for rule in sorted(rules, key=lambda rule: -sum(targets[name].numel() for name in rule.ours)):
        for name, tensor in _made_by(rule, source, targets):  # the largest first: there is most room for it
            made[id(targets[name])] = tensor
    left = [name for name, target in targets.items() if id(target) not in made]
    assert not left, f"no rule fills {left[0]}"
    fill(model, made)


def _made_by(rule: Rule, source: Source, targets: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what a rule makes of the source's tensors, each in memory of its own."""
    if rule.read is list and len(rule.theirs) == 1:
        (name,) = rule.ours
        _require_shape(rule, source, name, source.shape(rule.theirs[0]), targets)
        yield name, _copy(source.pieces(rule.theirs[0]), targets[name])
        return
    try:
        tensors = list(rule.read([source.get(name) for name in rule.theirs]))
    except RuntimeError:
        _require_shape(rule, source, rule.ours[0], (), targets)
        raise
    for name, tensor in zip(rule.ours, tensors, strict=True):
        _require_shape(rule, source, name, tensor.shape, targets)
    for name in rule.ours:
        yield name, _copy([tensors.pop(0)], targets[name])


def _require_shape(
    rule: Rule, source: Source, name: str, found: Sequence[int], targets: Mapping[str, Tensor]
) -> None:
    """Refuse a tensor whose shape is not that of the model's."""
    if tuple(found) != tuple(targets[name].shape):
        given = rule.theirs[0]
        raise CheckpointError(
            f"{source.where}: the tensor {given!r} has shape {list(source.shape(given))}, "
            f"which does not fit {name} of shape {list(targets[name].shape)}"
        )


def _copy(pieces: Iterable[Tensor], target: Tensor) -> nn.Parameter:
    """Return the pieces, one below the other, in the type of the target; in the target itself if it has memory."""
    new = torch.empty_like(target, device="cpu") if target.is_meta else target
    start = 0
    for piece in pieces:
        rows = new if piece.dim() == 0 else new[start : start + len(piece)]
        rows.copy_(piece)
        start += len(piece) if piece.dim() else 0
    return new if isinstance(new, nn.Parameter) else nn.Parameter(new, target.requires_grad)


@torch.no_grad()
def write_weights(model: nn.Module, rules: Sequence[Rule]) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's weights under their names and in their form."""
    ours: Mapping[str, Tensor] = model.state_dict()
    for rule in rules:
        made = rule.write([ours[name] for name in rule.ours])
        yield from zip(rule.theirs, (tensor.contiguous() for tensor in made), strict=True)
