"""Strict configuration: frozen dataclasses to plain data and back, every mistake told in one line.

Annotations are the schema: nested dataclasses, `X | None`, tuples, and leaves that pydantic validates
without coercion (`Literal`, `Annotated[int, Ge(1)]`; an integer is accepted for a float, nothing else is
converted). Alternatives name themselves by a class variable `kind`: a field annotated with a union of
dataclasses, or with an abstract class, is decoded by the `kind` key of its mapping.
"""

from __future__ import annotations

import difflib
import functools
import re
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
_NOTHING: Mapping[str, Any] = types.MappingProxyType({})


class ConfigError(ValueError):
    """A mistake in a configuration, in one line for the person who wrote it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def encode(config: Any) -> Any:
    """Return a configuration as plain data: dicts, lists, text, numbers, booleans, None.

    `kind` comes first where a class has one; fields with `init=False` are derived and left out.
    Raises `TypeError` for a value that has no plain form.
    """
    if config is None or isinstance(config, bool | int | float | str):
        return config
    if isinstance(config, tuple | list):
        return [encode(item) for item in config]
    if isinstance(config, Mapping):
        return {key: encode(item) for key, item in config.items()}
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"a configuration holds plain values and dataclasses, got {show(config)}")
    kind = getattr(type(config), "kind", None)
    values = {field.name: encode(getattr(config, field.name)) for field in fields(config) if field.init}
    return values if kind is None else {"kind": kind} | values


def decode(
    cls: type[T],
    data: object,
    *,
    kinds: Mapping[str, type] = _NOTHING,
    path: str = "",
    origin: Mapping[str, str] = _NOTHING,
) -> T:
    """Build `cls` from plain data; the inverse of `encode`.

    `kinds` is the table kind → class for fields annotated with an abstract class. A key that is left out
    keeps the value of the field's default, also inside a nested default of the same kind. `path` is the
    dotted path of `data` in the whole configuration, and `origin` says where the value at a path was
    written. Every mistake in `data` raises `ConfigError`.
    """
    try:
        return cast(T, _Decoder(kinds, origin).record((cls,), data, path, MISSING))
    except RecursionError:
        raise ConfigError(f"{path or 'configuration'}: is nested too deeply") from None


def child(path: str, key: object) -> str:
    """Return the path of `key` (a name, or a position in a list) below `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = key if isinstance(key, str) and key.isidentifier() else show(key)
    return f"{path}.{name}" if path else name


def show(value: object) -> str:
    """Return `value` in at most some 60 characters, however long or deep it is."""
    try:
        return "null" if value is None else reprlib.repr(value)[:60]
    except (ValueError, RecursionError):  # an integer too long to print
        return f"a value of type {type(value).__name__}"


def suggest(given: object, allowed: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of `allowed`, or nothing where none is near."""
    word = str(given)[:80].lower().replace("-", "_") if isinstance(given, str) else ""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@functools.cache
def _validator(annotation: Any) -> Callable[[Any], Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


@dataclass(frozen=True)
class _Decoder:
    kinds: Mapping[str, type]
    origin: Mapping[str, str]

    def value(self, annotation: Any, data: object, path: str, default: Any = MISSING) -> Any:
        """Decode what one annotation describes."""
        members = [m for m in _members(annotation) if m is not types.NoneType]
        if data is None and len(members) < len(_members(annotation)):
            return None
        if len(members) == 1 and get_origin(members[0]) is Annotated:
            inner, *rules = get_args(members[0])
            if self._is_class(inner) or get_origin(inner) is tuple:
                return self.leaf(Annotated[(Any, *rules)], self.value(inner, data, path, default), path)
        classes = tuple(m for m in members if self._is_class(m))
        tuples = [m for m in members if get_origin(m) is tuple]
        leaves = [m for m in members if m not in (*classes, *tuples)]
        if tuples and (isinstance(data, list | tuple) or not (classes or leaves)):
            return self.items(get_args(tuples[0]), data, path)
        if classes and (isinstance(data, Mapping) or not leaves):
            return self.record(classes, data, path, default)
        return self.leaf(Union[tuple(leaves)], data, path)  # noqa: UP007 (made at run time)

    def leaf(self, annotation: Any, data: object, path: str) -> Any:
        if isinstance(data, int) and data.bit_length() > 63:
            raise self.fault(path, "must fit in 64 bits, got a larger integer")
        try:
            return _validator(annotation)(data)
        except ValidationError as error:
            reports = [re.sub("^(Input|Value) should ", "", report["msg"]) for report in error.errors()]
            expected = " or ".join(dict.fromkeys(reports))
            close = suggest(data, re.findall(r"'(\w+)'", expected))
            raise self.fault(path, f"must {expected}, got {show(data)}{close}") from None

    def items(self, kinds: tuple[Any, ...], data: object, path: str) -> tuple[Any, ...]:
        if not isinstance(data, list | tuple):
            raise self.fault(path, f"must be a list, got {show(data)}")
        expected = (kinds[0],) * len(data) if kinds[-1] is Ellipsis else kinds
        if len(expected) != len(data):
            raise self.fault(path, f"must be a list of {len(expected)} values, got {len(data)}")
        pairs = enumerate(zip(expected, data, strict=True))
        return tuple(self.value(kind, item, child(path, i)) for i, (kind, item) in pairs)

    def record(self, classes: tuple[Any, ...], data: object, path: str, default: Any) -> Any:
        """Decode a mapping into one of `classes`; `default` gives the values of keys that are left out."""
        target, kinded = self._target(classes, data, path, default)
        given = cast(Mapping[str, object], data)
        known = {field.name: field for field in fields(target) if field.init}
        for key in given:
            if key not in known and not (kinded and key == "kind"):
                allowed = ", ".join(known) or "no key"
                raise self.fault(child(path, key), f"unknown key{suggest(key, known)} (allowed: {allowed})")
        hints = get_type_hints(target, include_extras=True)
        values = {}
        for name, field in known.items():
            fallback = getattr(default, name) if type(default) is target else _default(field)
            if name in given:
                values[name] = self.value(hints[name], given[name], child(path, name), fallback)
            elif fallback is MISSING:
                raise self.fault(path, f"misses the key {name!r}, which has no default")
            else:
                values[name] = fallback
        try:
            return target(**values)
        except ValueError as error:
            raise self.fault(path, str(error)) from None

    def _target(
        self, classes: tuple[Any, ...], data: object, path: str, default: Any
    ) -> tuple[type[Any], bool]:
        """Return the class that `data` means, and whether it goes by kind."""
        named: dict[str, type] = {c.kind: c for c in classes if hasattr(c, "kind")}
        named |= {k: c for k, c in self.kinds.items() if any(cls in c.__mro__ for cls in classes)}
        if not isinstance(data, Mapping):
            example = f" such as {{kind: {next(iter(named))}}}" if named else ""
            raise self.fault(path, f"must be a mapping{example}, got {show(data)}")
        if named and "kind" in data:
            kind = data["kind"]
            if not isinstance(kind, str) or kind not in named:
                known = f"{suggest(kind, named)} (allowed: {', '.join(named)})"
                raise self.fault(child(path, "kind"), f"unknown kind {show(kind)}{known}")
            return named[kind], True
        if type(default) in (*named.values(), *classes):
            return type(default), bool(named)
        if not named or classes == tuple(named.values()):
            return classes[0], bool(named)
        raise self.fault(path, f"needs the key 'kind', one of: {', '.join(named)}")

    def _is_class(self, annotation: Any) -> bool:
        if not isinstance(annotation, type):
            return False
        return is_dataclass(annotation) or any(annotation in c.__mro__[:-1] for c in self.kinds.values())

    def fault(self, path: str, text: str) -> ConfigError:
        place = path
        while place and place not in self.origin:
            place = re.sub(r"(^|\.)[^.\[]*$|\[[^\[]*$", "", place)
        where = f" ({self.origin[place]})" if place else ""
        return ConfigError(f"{path or 'configuration'}{where}: {text}")
