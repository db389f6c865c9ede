"""What distinguishes two architectures, in words: part by part, each difference once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any

from ..base.sockets import Config

COUNTERPARTS: Mapping[tuple[str, str], Mapping[str, str]] = MappingProxyType(
    {
        ("encoder_decoder", "decoder_only"): {"stack": "decoder"},
        ("encoder_decoder", "encoder_only"): {"stack": "encoder"},
        ("decoder_only", "encoder_decoder"): {"decoder": "stack"},
        ("encoder_only", "encoder_decoder"): {"encoder": "stack"},
    }
)
"""Which stack of a model of one kind is compared with which of a model of another."""


@dataclass(frozen=True)
class Difference:
    """One difference, and the places in the two models where it is."""

    places: tuple[str, ...]
    change: str

    def __str__(self) -> str:
        return f"{' and '.join(self.places)}: {self.change}"


def differences(first: Config, second: Config) -> list[Difference]:
    """Return how the second architecture differs from the first, in the order of its parts; none if they are equal.

    Settings of a part of the same kind are told one by one. A part of another kind is told by its kind, by what that
    is, and by its settings that are other than those of the part it replaces, or than their defaults. Equal blocks, and
    equal changes in several places, are told once.
    """
    found: dict[str, list[_Place]] = {}
    for place, change in _compare((), first, second):
        found.setdefault(change, []).append(place)
    return [Difference(_together(places), change) for change, places in found.items()]


def told(first: Config, second: Config) -> str:
    """Return the differences as lines of text; one that says so where there are none."""
    return "\n".join(map(str, differences(first, second))) or "no difference"


_Place = tuple[str | tuple[int, ...], ...]
"""The names that lead to a part, and after `blocks` the numbers of those that it is in."""


def _together(places: list[_Place]) -> tuple[str, ...]:
    """Return the places as words; those that differ only in the numbers of blocks are one."""
    numbers: dict[tuple[str | None, ...], set[int]] = {}
    for place in places:
        shape = tuple(name if isinstance(name, str) else None for name in place)
        blocks = (name for name in place if not isinstance(name, str))
        numbers.setdefault(shape, set()).update(*blocks)
    return tuple(
        " ".join(_ranges(blocks) if name is None else name for name in shape) or "model"
        for shape, blocks in numbers.items()
    )


def _ranges(numbers: set[int]) -> str:
    """1–3, 5 for 1, 2, 3, 5; of more than four ranges the first three and the last, which show the pattern."""
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    ends = sorted(n for n in numbers if n + 1 not in numbers)
    ranges = [f"{a}" if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True)]
    return ", ".join(ranges if len(ranges) <= 4 else [*ranges[:3], "…", ranges[-1]])


def _compare(place: _Place, first: Any, second: Any) -> Iterator[tuple[_Place, str]]:
    """Yield the place and the change of each difference between two parts."""
    if first == second:
        return
    if type(first) is not type(second):
        yield place, _replacement(first, second)
    others = COUNTERPARTS.get((_name(first), _name(second)), {})
    for name in (entry.name for entry in fields(second)):
        before = others.get(name, name)
        if not hasattr(first, before):
            continue
        old, new = getattr(first, before), getattr(second, name)
        here = (*place, name)
        if _is_blocks(old) and _is_blocks(new):
            yield from _compare_blocks(here, old, new)
        elif is_dataclass(old) and is_dataclass(new):
            yield from _compare(here, old, new)
        elif old != new and (type(first) is type(second) or not place):
            yield place, _setting(name, old, new)


def sizes_of(config: Any) -> dict[str, int]:
    """Return the sizes by which families are built, as far as a model has them; of two stacks, the decoder's."""
    stack = getattr(config, "stack", None) or getattr(config, "decoder", None)
    found = {name: getattr(config, name, None) for name in ("vocab_size", "d_model")}
    if stack is not None:
        mixer = getattr(stack.blocks[0], "mixer", None)
        found |= {"n_layers": len(stack.blocks), "n_heads": getattr(mixer, "n_heads", None)}
        found |= {"max_seq_len": getattr(stack.position, "max_seq_len", None)}
    return {name: size for name, size in found.items() if size is not None}


def _compare_blocks(
    place: _Place, old: tuple[Any, ...], new: tuple[Any, ...]
) -> Iterator[tuple[_Place, str]]:
    """Yield the differences of two stacks' blocks, of equal pairs of blocks together."""
    if len(old) != len(new):
        yield place, f"{len(old)} → {len(new)}"
    numbers: dict[tuple[Any, Any], list[int]] = {}
    for number, pair in enumerate(zip(old, new, strict=False), 1):
        numbers.setdefault(pair, []).append(number)
    for pair, blocks in numbers.items():
        yield from _compare((*place, tuple(blocks)), *pair)


def _is_blocks(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(is_dataclass(item) for item in value)


def _replacement(first: Any, second: Any) -> str:
    """Tell that a part is replaced by one of another kind."""
    if first is None or second is None or not is_dataclass(first) or not is_dataclass(second):
        return f"{_name(first)} → {_name(second)}"
    notes = [_meaning(second)]
    for entry in fields(second):
        new = getattr(second, entry.name)
        old = getattr(first, entry.name, entry.default)
        if old != new and not is_dataclass(new) and not _is_blocks(new) and not hasattr(second, "vocab_size"):
            notes.append(
                _setting(entry.name, old, new) if hasattr(first, entry.name) else f"{entry.name} {_show(new)}"
            )
    return f"{_name(first)} → {_name(second)} ({'; '.join(note for note in notes if note)})"


def _setting(name: str, old: Any, new: Any) -> str:
    return f"{name} {_name(old)} → {_name(new)}"


def _name(value: Any) -> str:
    """A part by its kind, the absence of one as `none`, any other value as a configuration file writes it."""
    return value.kind if is_dataclass(value) and hasattr(value, "kind") else _show(value)


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return str(value)


def _meaning(config: Any) -> str:
    """What a part is: the first clause of what its config says of itself."""
    words = " ".join((inspect.getdoc(type(config)) or "").split())
    words = re.sub(r" \([^)]*\)", "", words)
    return re.split(r",? as data|[.;:](?:\s|$)", words, maxsplit=1)[0]
