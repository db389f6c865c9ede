"""How an enhancement edits a config: a function from a tree of configs to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from typing import Any, TypeVar, cast

from ..base.sockets import Config, Enhancement

C = TypeVar("C", bound=Config)
P = TypeVar("P", bound=Config)


def enhance(config: C, *enhancements: Enhancement) -> C:
    """Apply the enhancements, first to last: `enhance(gpt(), rope(), rms_norm())`."""
    return reduce(lambda value, enhancement: cast(C, enhancement(value)), enhancements, config)


def replace_parts(config: C, part: type[P], new: Callable[[P], Config]) -> C:
    """Return `config` with every part of type `part` in it, at any depth, replaced by `new(part)`.

    Parts inside a replaced one are not looked at again.
    """
    return cast(C, _replace(config, part, new))


def has_part(config: Any, part: type[Config]) -> bool:
    """Whether there is a part of this type in the config, at any depth."""
    if isinstance(config, part):
        return True
    if isinstance(config, tuple):
        return any(has_part(item, part) for item in config)
    return is_dataclass(config) and any(has_part(getattr(config, f.name), part) for f in fields(config))


def _replace(value: Any, part: type[P], new: Callable[[P], Config]) -> Any:
    if isinstance(value, part):
        return new(value)
    if isinstance(value, tuple):
        return tuple(_replace(item, part, new) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    old = {field.name: getattr(value, field.name) for field in fields(value)}
    changed = {name: _replace(item, part, new) for name, item in old.items()}
    return replace(value, **{name: item for name, item in changed.items() if item is not old[name]})
