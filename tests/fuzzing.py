"""Fuzzed configurations: a valid one is damaged, and must be refused in one line or work completely.

`fuzz` knows no schema: it takes the root class, a valid instance, the table of kinds, and a `build` that
does with an accepted configuration whatever must then succeed (build the model, train a step, save, load).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer.utils.codec import ConfigError, decode, encode
from transformer.utils.layering import Layers, dump_yaml, read_layers

Slot = tuple[Any, Any]  # a dict or list, and a key or index in it
SECONDS = 5.0

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 7, 2**31, 2**62, 2**63, 10**30, 0.0, -0.0, 0.5, 1.5, -1e-9, 1e308),
    *(float("inf"), float("-inf"), float("nan"), "", " ", "abc", "1", "1e-3", "true", "null", "auto", "none"),
    *("ünïcode \u202e\u2028", "a\nb", "../../etc/passwd", "\x00", "x" * 9999, [], {}, [1, 2], [[]], {"a": 1}),
    *({"kind": "attention"}, {"kind": None}, [{}], "{kind: x}", "${HOME}", "!!python/name:os.system"),
]
JUNK = [
    "\t",
    "\x00",
    "\ufeff",
    "[" * 5000,
    "{",
    "*a",
    "&a ",
    "!!int ",
    "\n---\n",
    "? ",
    "- ",
    "<<: ",
    "\udcff",
    "'",
]
BOMB = "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9 if i else ['1'])}]\n" for i in range(12))


@dataclass(frozen=True)
class Outcome:
    """What came of one case: `refusal` is the message, or None when everything worked."""

    number: int
    damage: tuple[str, ...]
    refusal: str | None


def fuzz(
    schema: type,
    base: object,
    kinds: Mapping[str, type],
    build: Callable[[Any, Layers], object],
    *,
    count: int,
    seed: int,
    folder: Path,
    read: Callable[[Any, Mapping[str, str]], Any] | None = None,
    write: Callable[[Any], Any] = encode,
) -> Iterator[Outcome]:
    """Yield `count` outcomes; case `i` depends on `seed` and `i` alone.

    Raises AssertionError, naming the case and its file, for a traceback, a message that is not one line or
    names no place, a typo without the nearest key, more than 5 s until a refusal, or a setting that an
    accepted configuration silently ignores. `read` and `write` replace `decode` and `encode` for a schema whose
    plain form is not its fields.
    """

    def plain(data: Any, origin: Mapping[str, str]) -> Any:
        return decode(schema, data, kinds=kinds, origin=origin)

    for number in range(count):
        case = _Case(random.Random(f"{seed}/{number}"), write(base), kinds)
        path = folder / f"case-{number}.yaml"
        path.write_bytes(case.text.encode(errors="surrogateescape"))
        told = f"case {number} {case.damage} in {path} {case.overrides}"
        started, refusal = time.perf_counter(), None
        try:
            layers = read_layers([path], case.overrides)
            config = (read or plain)(layers.data, layers.origin)
            assert _holds(write(config), layers.data), f"{told}: something given was ignored"
            started = time.perf_counter() if build(config, layers) is None else started
        except ConfigError as error:
            refusal = str(error)
            assert time.perf_counter() - started < SECONDS, f"{told}: took too long to refuse: {refusal}"
            _check_message(refusal, case, path, told)
        except Exception as error:
            raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
        path.unlink()
        yield Outcome(number, tuple(case.damage), refusal)


def _check_message(refusal: str, case: _Case, path: Path, told: str) -> None:
    assert len(refusal.splitlines()) == 1 and refusal.isprintable(), f"{told}: not one line: {refusal!r}"
    assert len(refusal) < 1000, f"{told}: too long: {refusal[:200]}…"
    places = (f"{path}:", f"{path} ", "--")
    assert any(p in refusal for p in places) or "configuration" in refusal, f"{told}: no place: {refusal}"
    if case.damage == ["typo"]:
        assert "did you mean" in refusal, f"{told}: no nearest key: {refusal}"


def _holds(encoded: Any, given: Any) -> bool:
    """Whether every value given is found again in the configuration made of it."""
    if isinstance(given, dict):
        return isinstance(encoded, dict) and all(k in encoded and _holds(encoded[k], given[k]) for k in given)
    if isinstance(given, list):
        return len(encoded) == len(given) and all(map(_holds, encoded, given))
    return bool(encoded == given)


def _slots(data: Any) -> Iterator[Slot]:
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from _slots(data[key])


class _Case:
    """One damaged configuration: YAML text, overrides, and the names of what was done to it."""

    def __init__(self, rng: random.Random, data: Any, kinds: Mapping[str, type]) -> None:
        self.rng, self.kinds, self.damage = rng, kinds, list[str]()
        self.data = data
        self.overrides: list[str] = []
        damages = [
            self.typo,
            self.value,
            self.remove,
            self.stranger,
            self.kind,
            self.swap,
            self.nudge,
            self.nest,
        ]
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            self.apply(rng.choice([*damages, self.override]))
        self.text = dump_yaml(self.data)
        if rng.random() < 0.2:
            self.apply(rng.choice([self.cut, self.junk, self.repeat, self.bomb]))

    def apply(self, damage: Callable[[], None]) -> None:
        damage()
        self.damage.append(damage.__name__)

    def slot(self, wanted: Callable[[Slot], bool] = lambda slot: True) -> Slot:
        """A random place in the data that fits; the whole root again where none does."""
        return self.rng.choice(
            [s for s in _slots(self.data) if wanted(s)] or [(self.data, next(iter(self.data)))]
        )

    def typo(self) -> None:
        where, key = self.slot(lambda s: isinstance(s[0], dict) and len(s[1]) > 4)
        at = self.rng.randrange(1, len(key))
        letter = self.rng.choice("qxzj_")
        where[f"{key[:at]}{letter}{key[at + self.rng.randrange(2) :]}"] = where.pop(key)

    def value(self) -> None:
        where, key = self.slot()
        where[key] = copy.deepcopy(self.rng.choice(VALUES))

    def remove(self) -> None:
        where, key = self.slot()
        if len(self.data) > 1:
            del where[key]

    def stranger(self) -> None:
        where, _ = self.slot(lambda s: isinstance(s[0], dict))
        where[self.rng.choice(["colour", "__class__", "ключ", "", "a.b", "kind ", "none", "2"])] = 1

    def kind(self) -> None:
        where, _ = self.slot(lambda s: s[1] == "kind")
        where["kind"] = self.rng.choice([*self.kinds, "atention", "os.system", "", "Kind"])

    def swap(self) -> None:
        (a, i), (b, j) = self.slot(), self.slot()
        a[i], b[j] = copy.deepcopy(b[j]), copy.deepcopy(a[i])

    def nudge(self) -> None:
        where, key = self.slot(lambda s: type(s[0][s[1]]) in (int, float))
        value = where[key]
        if isinstance(value, int | float):
            where[key] = self.rng.choice([-value, value + 1, value - 1, value * 2, value * 10**9, value / 3])

    def nest(self) -> None:
        where, key = self.slot()
        for _ in range(self.rng.choice([1, 3, 40])):
            where[key] = [where[key]] if self.rng.random() < 0.5 else {str(key): where[key]}

    def override(self) -> None:
        names = []
        here: Any = self.data
        while isinstance(here, dict) and here:
            names.append(self.rng.choice(list(here)))
            here = here[names[-1]]
        if self.rng.random() < 0.3:
            names[-1] = names[-1][:-1] + "q"
        value = self.rng.choice(
            ["1", "-1", "1e-3", "abc", "[1, 2]", "{a: 1}", "", "*x", "[[", "true", "nan", ".nan"]
        )
        self.overrides += (
            [f"--{'.'.join(names)}", value] if self.rng.random() < 0.5 else [f"{'.'.join(names)}={value}"]
        )

    def cut(self) -> None:
        self.text = self.text[: self.rng.randrange(len(self.text) + 1)]

    def junk(self) -> None:
        at = self.rng.randrange(len(self.text) + 1)
        self.text = self.text[:at] + self.rng.choice(JUNK) + self.text[at:]

    def repeat(self) -> None:
        lines = self.text.splitlines(keepends=True)
        lines.insert(self.rng.randrange(len(lines) + 1), self.rng.choice(lines))
        self.text = "".join(lines)

    def bomb(self) -> None:
        self.text = BOMB + self.text
