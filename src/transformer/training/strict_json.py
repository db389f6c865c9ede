"""JSON that came from outside: bounded, without duplicate names, and one line when it is wrong."""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

MAX_BYTES = 8_000_000
"""The largest JSON text read: far above any real header or manifest, far below what could exhaust memory."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message is one line, meant for people."""


def encode(value: JSON, where: str) -> bytes:
    """Return `value` as indented JSON with sorted names; NaN and infinity are refused, JSON has none."""
    try:
        return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be written as JSON: {error}") from error


def parse(data: bytes, where: str) -> Any:
    """Return the value of a JSON text; `where` names it in errors."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise CheckpointError(f"{where} is damaged: its JSON is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{where} is damaged: {error}") from error


def read(path: Path) -> bytes:
    """Return the bytes of a small regular file; links, devices and files beyond `MAX_BYTES` are refused."""
    size = regular_size(path)
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} such a file may have")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def regular_size(path: Path) -> int:
    """Return the size of a regular file in bytes; anything else, a link included, is refused."""
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file (a link or a device is never followed)")
    return status.st_size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        duplicate, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {duplicate[:80]!r} occurs more than once")
    return result
