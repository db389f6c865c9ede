"""Layered configuration: YAML 1.2 files, then overrides, and where every value was written."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, events
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from .codec import ConfigError, child, show, suggest

MAX_BYTES, MAX_DEPTH = 1 << 20, 64


@dataclass(frozen=True)
class Layers:
    """Plain data, and the origin (`file:line` or `--key`) of every value in it by dotted path."""

    data: dict[str, Any]
    origin: dict[str, str]


@dataclass(frozen=True)
class _Value:
    content: Any  # a scalar, or a dict or list of _Value
    where: str


def read_layers(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Layers:
    """Merge `files` in order, then `overrides` (`a.b=1`, `--a.b=1`, or `--a.b` followed by `1`).

    Mappings are merged key by key, unless a later one names another `kind`: then it replaces the earlier,
    as lists and scalars do. Every mistake raises `ConfigError`, with the file and line where there is one.
    """
    merged, commands = _Value({}, "default"), _Value({}, "default")
    for path in files:
        merged = _merge(merged, _read_file(Path(path)))
    for name, text in _split_overrides(overrides):
        value = _Reader(f"--{name}", text.encode(errors="surrogateescape"), numbered=False).read()
        for key in reversed(name.split(".")):
            value = _Value({key: value}, f"--{name}")
        commands = _merge(commands, value)
    origin: dict[str, str] = {}
    return Layers(_plain(_merge(merged, commands), "", origin), origin)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML that `read_layers` reads back unchanged."""
    yaml = YAML()
    yaml.width = 1 << 20
    yaml.Representer = _Representer
    yaml.dump(data, stream := io.StringIO())
    return stream.getvalue()


class _Representer(RoundTripRepresenter):
    """Escapes the line breaks of Unicode: between single quotes a reader may fold them to spaces."""

    def represent_str(self, data: str) -> ScalarNode:
        style = '"' if set(data) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Representer.add_representer(str, _Representer.represent_str)


def _merge(old: _Value, new: _Value) -> _Value:
    if not isinstance(old.content, dict) or not isinstance(new.content, dict):
        return new
    kinds = [layer.content["kind"].content for layer in (old, new) if "kind" in layer.content]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        return new
    later = {k: _merge(old.content[k], v) if k in old.content else v for k, v in new.content.items()}
    return _Value(old.content | later, new.where)


def _plain(value: _Value, path: str, origin: dict[str, str]) -> Any:
    """Return the bare data below `value`, and note in `origin` where each part of it was written."""
    origin[path] = value.where
    if isinstance(value.content, dict):
        return {k: _plain(v, child(path, k), origin) for k, v in value.content.items()}
    if isinstance(value.content, list):
        return [_plain(v, child(path, i), origin) for i, v in enumerate(value.content)]
    return value.content


def _split_overrides(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(tokens)
    for token in rest:
        name, equals, text = token.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z_][\w-]*(\.[a-z_][\w-]*)*", name, re.ASCII | re.IGNORECASE):
            raise ConfigError(f"{show(token)}: must be --section.key VALUE or section.key=VALUE")
        following = text if equals else next(rest, "--") if token.startswith("--") else "--"
        if not equals and following.startswith("--"):
            raise ConfigError(f"--{name}: needs a value; write --{name} VALUE or {name}=VALUE")
        yield name, following


def _read_file(path: Path) -> _Value:
    label = str(path) if str(path).isprintable() else show(str(path))
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "not a regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        near = suggest(path.name, [p.name for p in path.parent.glob("*.y*ml") if p.is_file()])
        raise ConfigError(f"{label}: cannot be read: {reason}{near}") from None
    value = _Reader(label, raw, numbered=True).read()
    if not isinstance(value.content, dict | None):
        raise ConfigError(f"{value.where}: must hold 'key: value' lines, got {show(_plain(value, '', {}))}")
    return _Value(value.content or {}, value.where)


class _Reader:
    """Reads one YAML text, of plain values only: no tags, aliases, merge keys or repeated keys."""

    def __init__(self, label: str, raw: bytes, *, numbered: bool) -> None:
        self.label, self.raw, self.numbered = label, raw, numbered
        self.yaml = YAML(typ="safe", pure=True)
        self.events: Iterator[Any] = self.yaml.parse(raw)

    def read(self) -> _Value:
        if len(self.raw) > MAX_BYTES:
            raise ConfigError(f"{self.label}: is too large for a configuration (more than {MAX_BYTES} bytes)")
        try:
            _, first = next(self.events), next(self.events)
            if isinstance(first, events.StreamEndEvent):
                return _Value(None, self._place(0))
            value = self._value(next(self.events))
            _, end = next(self.events), next(self.events)
        except YAMLError as error:
            mark, position = getattr(error, "problem_mark", None), getattr(error, "position", 0)
            line = mark.line if mark else self.raw.count(b"\n", 0, position)
            problem = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
            raise ConfigError(f"{self._place(line)}: is not valid YAML: {problem}") from None
        if not isinstance(end, events.StreamEndEvent):
            raise self._fault(end, "a second document begins; keep one")
        return value

    def _value(self, event: Any, depth: int = 0, where: str = "") -> _Value:
        where = where or self._place(event.start_mark.line)
        if depth > MAX_DEPTH:
            raise self._fault(event, f"is nested more than {MAX_DEPTH} deep")
        if isinstance(event, events.ScalarEvent):
            return _Value(self._scalar(event), where)
        if isinstance(event, events.AliasEvent) or event.tag is not None:
            raise self._fault(event, "aliases and tags are not read; write the value out")
        if isinstance(event, events.SequenceStartEvent):
            return _Value([self._value(e, depth + 1) for e in self._until(events.SequenceEndEvent)], where)
        content: dict[str, _Value] = {}
        for name in self._until(events.MappingEndEvent):
            key = self._scalar(name) if isinstance(name, events.ScalarEvent) else None
            if not isinstance(key, str):
                raise self._fault(name, f"a key must be a word, got {show(getattr(name, 'value', []))}")
            if key in content:
                raise self._fault(name, f"the key {show(key)} is given twice; keep one")
            content[key] = self._value(next(self.events), depth + 1, self._place(name.start_mark.line))
        return _Value(content, where)

    def _scalar(self, event: events.ScalarEvent) -> Any:
        tag = self.yaml.resolver.resolve(ScalarNode, event.value, event.implicit)
        kind = str(tag).rpartition(":")[2]
        if kind in ("str", "timestamp") and event.tag is None:  # a date is a word: no setting is a date
            return event.value
        if kind not in ("null", "bool", "int", "float") or event.tag is not None:
            raise self._fault(event, "aliases and tags are not read; write the value out")
        try:
            return self.yaml.constructor.construct_object(ScalarNode(tag, event.value))
        except ValueError:
            raise self._fault(event, f"{show(event.value)} is no number that can be read") from None

    def _until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event

    def _place(self, line: int) -> str:
        return f"{self.label}:{line + 1}" if self.numbered else self.label

    def _fault(self, event: Any, text: str) -> ConfigError:
        return ConfigError(f"{self._place(event.start_mark.line)}: {text}")
