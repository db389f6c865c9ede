"""The beginning of a GGUF file: its settings, and where each tensor lies. Little-endian, versions 2 and 3.

    file   = "GGUF" | u32 version | u64 n_tensors | u64 n_settings | settings | tensors | padding | data
    setting = string name | u32 type | value        tensor = string name | u32 n | u64 size × n | u32 type | u64 offset
    string  = u64 length | UTF-8                    array  = u32 type | u64 length | values

Nothing that is read is trusted: no count or length is believed that the rest of the file could not hold.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..training.strict_json import CheckpointError, regular_size

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_ITEMS, MAX_TEXT, MAX_DIMENSIONS = 2**22, 2**24, 8
"""Far above what tokenizers have, far below what could exhaust the memory: items of a list, bytes of a text."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file. sizes: from the innermost; offset: in bytes, from the beginning of the file."""

    sizes: tuple[int, ...]
    type_number: int
    offset: int

    @property
    def rows(self) -> int:
        return math.prod(self.sizes[1:])


@dataclass(frozen=True)
class Header:
    """settings: by name, lists for arrays. tensors: by name. size: of the file, in bytes."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, Entry]
    size: int


def read_header(path: Path) -> Header:
    """Return what stands at the beginning of a file; `CheckpointError` in one line for a file that is damaged."""
    size = regular_size(path)
    with path.open("rb") as file:
        reader = _Reader(file, size)
        try:
            return reader.header()
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a GGUF file, or damaged at byte {file.tell():,}: {str(error)[:200]}"
            ) from None


class _Reader:
    """Reads one value after the other."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def header(self) -> Header:
        if self._file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version, n_tensors, n_settings = self._number("I"), self._number("Q"), self._number("Q")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, and only 2 and 3 are read")
        self._room(n_settings, 13)
        settings: dict[str, Any] = {}
        for _ in range(n_settings):
            name = self._text()
            if name in settings:
                raise ValueError(f"the setting {name[:80]!r} is there twice")
            settings[name] = self._value(self._number("I"))
        self._room(n_tensors, 32)
        tensors: dict[str, Entry] = {}
        for _ in range(n_tensors):
            name = self._text()
            if name in tensors:
                raise ValueError(f"the tensor {name[:80]!r} is there twice")
            tensors[name] = self._entry()
        alignment = settings.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**20:
            raise ValueError(f"its alignment is {str(alignment)[:40]}")
        start = -(-self._file.tell() // alignment) * alignment
        placed = {name: Entry(e.sizes, e.type_number, e.offset + start) for name, e in tensors.items()}
        return Header(settings, placed, self._size)

    def _entry(self) -> Entry:
        n_dimensions = self._number("I")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"a tensor has {n_dimensions} dimensions")
        sizes = tuple(self._number("Q") for _ in range(n_dimensions))
        return Entry(sizes, self._number("I"), self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            return self._number(_code(kind))
        kind, length = self._number("I"), self._number("Q")
        if length > MAX_ITEMS:
            raise ValueError(f"a list has {length:,} items, more than {MAX_ITEMS:,}")
        if kind == STRING:
            self._room(length, 8)
            return [self._text() for _ in range(length)]
        form = f"<{length}{_code(kind)}"
        return list(struct.unpack(form, self._bytes(struct.calcsize(form))))

    def _text(self) -> str:
        length = self._number("Q")
        if length > MAX_TEXT:
            raise ValueError(f"a text has {length:,} bytes, more than {MAX_TEXT:,}")
        return self._bytes(length).decode()

    def _number(self, code: str) -> Any:
        form = f"<{code}"
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _bytes(self, length: int) -> bytes:
        self._room(length, 1)
        return self._file.read(length)

    def _room(self, count: int, least: int) -> None:
        """Refuse more items than there are bytes left for, `least` each."""
        left = self._size - self._file.tell()
        if count * least > left:
            raise ValueError(f"{count:,} items of at least {least} bytes do not fit into the {left:,} left")


def _code(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"there is no type of number {kind}")
    return SCALARS[kind]
