"""A configuration in words: the settings and where each was written, and the tree of parts with their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from torch import nn

from ..models import ModelConfig


def settings_table(data: Mapping[str, Any], origin: Mapping[str, str]) -> Table:
    """Return every setting of a run, its value, and where that was written: `file:line`, `--key` or `default`."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold")
    for path, value in _leaves(data, ""):
        where = origin.get(path, "default")
        style = "dim" if where == "default" else ""
        table.add_row(Text(path, style=style), Text(_show(value), style=style), Text(where, style=style))
    return table


def parts_tree(config: ModelConfig, model: nn.Module) -> Tree:
    """Return the tree of a model's parts with their settings and numbers of weights; equal blocks are folded."""
    tree = Tree(Text(f"{config.kind}  {_weights(model)}"))
    _grow(tree, config, model)
    return tree


def _grow(tree: Tree, config: Any, model: nn.Module | None) -> None:
    """Add the parts of a config below its node; `model` holds the modules of the same names."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        child = getattr(model, entry.name, None) if model is not None else None
        module = child if isinstance(child, nn.Module) else None
        if isinstance(value, tuple):
            for first, last in _runs(value):
                name = (
                    f"{entry.name} {first + 1}"
                    if first == last
                    else f"{entry.name} {first + 1}-{last + 1}, each"
                )
                block = module[first] if isinstance(module, nn.ModuleList) else None
                _grow(tree.add(_line(name, value[first], block)), value[first], block)
        elif is_dataclass(value):
            _grow(tree.add(_line(entry.name, value, module)), value, getattr(module, "branch", module))


def _line(name: str, config: Any, module: nn.Module | None) -> Text:
    """A part in one line: its place, its kind, its own settings and its weights."""
    own = [(f.name, getattr(config, f.name)) for f in fields(config)]
    plain = ", ".join(f"{n} {_show(v)}" for n, v in own if not is_dataclass(v) and not isinstance(v, tuple))
    line = Text.assemble((name, "bold"), f": {config.kind}", f" ({plain})" if plain else "")
    return line.append(f"  {_weights(module)}" if module is not None else "", style="cyan")


def _weights(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,} weights"


def _runs(items: tuple[Any, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first and last index of each run of equal items."""
    first = 0
    for index in range(1, len(items) + 1):
        if index == len(items) or items[index] != items[first]:
            yield first, index - 1
            first = index


def _leaves(data: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            yield from _leaves(value, name)
        else:
            yield name, value


def _show(value: Any) -> str:
    return (
        "null"
        if value is None
        else repr(value)
        if isinstance(value, str) and not value.strip()
        else str(value)
    )
