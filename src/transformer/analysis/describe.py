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
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for path, value in _leaves(data, ""):
        where = origin.get(path, "default")
        style = "dim" if where == "default" else ""
        table.add_row(Text(path, style=style), Text(_show(value), style=style), Text(where, style=style))
    return table


def parts_tree(config: ModelConfig, model: nn.Module) -> Tree:
    """Return the tree of a model's parts with their settings and numbers of weights; equal blocks are folded.

    The weights of a part are its own, so those of the parts of a block add up to the block's; the norms around its
    parts are counted together. A map to logits that is the embedding has no weights of its own.
    """
    tree = Tree(_line("model", config, _count(model)))
    _grow(tree, config, model)
    return tree


def _grow(tree: Tree, config: Any, module: nn.Module | None) -> None:
    """Add the parts of a config below its node; `module` is what it was built into."""
    values = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    modules = {name: _find(module, name) for name in values}
    counts = _count_apart({name: found for name, found in modules.items() if found is not None})
    if module is not None and "norm" not in counts:  # the norms of a block stand in the wirings of its parts
        counts["norm"] = _count(module) - sum(counts.values())
    for name, value in values.items():
        if isinstance(value, tuple) and all(map(is_dataclass, value)):
            _grow_blocks(tree, name, value, modules[name])
        elif is_dataclass(value):
            _grow(tree.add(_line(name, value, counts.get(name))), value, modules[name])


def _grow_blocks(tree: Tree, name: str, blocks: tuple[Any, ...], modules: nn.Module | None) -> None:
    """Add each run of equal blocks as one."""
    for first, last in _runs(blocks):
        numbers = f"{first + 1}" if first == last else f"{first + 1}–{last + 1}, each"
        module = modules[first] if isinstance(modules, nn.ModuleList) else None
        count = None if module is None else _count(module)
        _grow(tree.add(_line(f"{name} {numbers}", blocks[first], count)), blocks[first], module)


def _find(module: nn.Module | None, name: str) -> nn.Module | None:
    """Return the module of a part, taken out of the wiring around it."""
    found = getattr(module, name, None)
    return getattr(found, "branch", found) if isinstance(found, nn.Module) else None


def _line(name: str, config: Any, weights: int | None) -> Text:
    """A part in one line: its place, its kind, its own settings and its weights."""
    own = [(entry.name, getattr(config, entry.name)) for entry in fields(config)]
    parts = (is_dataclass(v) or (isinstance(v, tuple) and all(map(is_dataclass, v))) for _, v in own)
    plain = [f"{key} {_show(v)}" for (key, v), part in zip(own, parts, strict=True) if not part]
    line = Text.assemble((name, "bold"), f": {config.kind}", f" ({', '.join(plain)})" if plain else "")
    return line.append(f"  {weights:,} weights" if weights else "", style="cyan")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count_apart(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """The weights of each module that none before it has: tied ones belong to the first."""
    seen: set[nn.Parameter] = set()
    counts = {}
    for name, module in modules.items():
        own = set(module.parameters()) - seen
        counts[name] = sum(parameter.numel() for parameter in own)
        seen |= own
    return counts


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
    """Write a value as a configuration file does; a text of blanks alone is quoted, so that it is seen."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) and not value.strip() else str(value)
