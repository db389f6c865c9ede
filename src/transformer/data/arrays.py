"""One-dimensional integer arrays on disk: written in a stream, read through a memory map, checked by hash.

A file is the little-endian numbers and nothing else; `ArrayInfo`, which the manifest keeps, says what they
are. The hash is taken per 16 MiB block, so that damage is found together with its place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import DataError

HASH_BLOCK = 1 << 24
DType: TypeAlias = Literal["<u2", "<u4", "<u8"]
IntArray: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class ArrayInfo:
    """What a file of numbers must hold: its dtype, its length and the sha256 of each 16 MiB block."""

    dtype: DType
    length: int
    sha256: tuple[str, ...]


def token_dtype(vocab_size: int) -> DType:
    """Return the smallest dtype that holds every token of the vocabulary."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


class ArrayWriter:
    """Append numbers to a new file; `info` is known once the `with` block has ended."""

    def __init__(self, path: Path, dtype: DType) -> None:
        self._path, self._dtype = path, dtype
        self._file = path.open("xb")
        self._info: ArrayInfo | None = None

    def write(self, values: IntArray | list[int]) -> None:
        """Append `values`, which must fit the dtype."""
        self._file.write(np.asarray(values, dtype=self._dtype).tobytes())

    @property
    def info(self) -> ArrayInfo:
        """What the finished file holds."""
        assert self._info is not None, "the file is still being written"
        return self._info

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None:
            length = self._path.stat().st_size // np.dtype(self._dtype).itemsize
            hashes = tuple(hashlib.sha256(block).hexdigest() for block in _read_blocks(self._path))
            self._info = ArrayInfo(self._dtype, length, hashes)


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as opened:
        while block := opened.read(HASH_BLOCK):
            yield block


def open_array(path: Path, info: ArrayInfo, below: int | None = None) -> IntArray:
    """Map a file into memory after one pass that checks its size, its hashes and that all is `below` a bound.

    DataError names the file and the place. The pass reads block by block and keeps nothing.
    """
    if not path.is_file() or path.is_symlink():
        raise DataError(f"{path} is missing; delete the folder {path.parent} and prepare the data again")
    expected, size = info.length * np.dtype(info.dtype).itemsize, path.stat().st_size
    if size != expected:
        word = "truncated at" if size < expected else "too long with"
        raise DataError(f"{path} is {word} {size} bytes instead of {expected}; prepare the data again")
    offset = 0
    for block, sha256 in zip_longest(_read_blocks(path), info.sha256, fillvalue=b""):
        if hashlib.sha256(block).hexdigest() != sha256:
            last = offset + len(block) - 1
            raise DataError(f"{path} was changed in bytes {offset} to {last}; prepare the data again")
        if below is not None:
            _check_below(path, offset, np.frombuffer(block, info.dtype), below)
        offset += len(block)
    if not info.length:
        return np.empty(0, dtype=info.dtype)
    return np.memmap(path, dtype=info.dtype, mode="r").view(np.ndarray)


def _check_below(path: Path, offset: int, tokens: IntArray, vocab_size: int) -> None:
    bad = np.flatnonzero(tokens >= vocab_size)
    if len(bad):
        first = int(bad[0])
        raise DataError(
            f"{path}, offset {offset + first * tokens.itemsize}: token {tokens[first]} is outside the vocabulary "
            f"of {vocab_size}; prepare the data again with this tokenizer"
        )
