"""Weights by other names: rules that say how tensors of one library are those of the other, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...training.strict_json import CheckpointError

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
    """Named tensors that are fetched one at a time."""

    where: str

    @property
    def names(self) -> frozenset[str]: ...

    def get(self, name: str) -> Tensor: ...


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
    filled: set[int] = set()
    for rule in rules:
        given = [source.get(name) for name in rule.theirs]
        try:
            made = rule.read(given)
            shapes = [
                (name, tensor.shape, targets[name].shape)
                for name, tensor in zip(rule.ours, made, strict=True)
            ]
        except RuntimeError:
            shapes, made = [(rule.ours[0], given[0].shape, torch.Size())], []
        for name, found, needed in shapes:
            if found != needed:
                raise CheckpointError(
                    f"{source.where}: the tensor {rule.theirs[0]!r} has shape {list(given[0].shape)}, "
                    f"which does not fit {name} of shape {list(targets[name].shape)}"
                )
        for name, tensor in zip(rule.ours, made, strict=True):
            targets[name].copy_(tensor)
            filled.add(id(targets[name]))
    left = [name for name, target in targets.items() if id(target) not in filled]
    assert not left, f"no rule fills {left[0]}"


@torch.no_grad()
def write_weights(model: nn.Module, rules: Sequence[Rule]) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's weights under their names and in their form."""
    ours: Mapping[str, Tensor] = model.state_dict()
    for rule in rules:
        made = rule.write([ours[name] for name in rule.ours])
        yield from zip(rule.theirs, (tensor.contiguous() for tensor in made), strict=True)
