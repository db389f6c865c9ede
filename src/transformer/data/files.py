r"""Reading text by name and line, and writing files that are whole or absent.

Text is UTF-8, plain or gzip (`.gz`). Lines end with `\n` alone: other separators that Unicode knows (U+2028,
`\x0b`, `\r` …) are ordinary characters. Everything is read in blocks, so that a file may exceed the memory.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path

from .errors import DataError, nearest

BLOCK_BYTES = 1 << 16
MAX_LINE = 1_000_000
"""The longest line, in characters, that `read_lines` accepts: one that is longer is not a sentence."""


def find_file(path: Path) -> Path:
    """Return `path` or `path.gz`, whichever exists; DataError names the nearest file when neither does."""
    zipped = path.with_name(path.name + ".gz")
    found = [candidate for candidate in (path, zipped) if candidate.is_file()]
    if len(found) == 2:
        raise DataError(f"{path} and {zipped.name} both exist; keep the one that is meant")
    if found:
        return found[0]
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be read: there is no folder {path.parent}")
    files = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    ending = "" if path.suffix == ".gz" else "[.gz]"
    raise DataError(f"there is no file {path}{ending}{nearest(path.name, files)}")


def read_blocks(path: Path) -> Iterator[str]:
    """Yield the text of a file in blocks of about 64 KiB.

    DataError names the file and the line of the first byte that is not UTF-8, of damaged gzip data, and an
    empty file.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    for block in _read_bytes(path):
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise DataError(
                f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; convert the file to UTF-8"
            ) from None
        line += text.count("\n")
        if text:
            yield text


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _read_bytes(path: Path) -> Iterator[bytes]:
    """Yield the (unzipped) bytes in blocks and an empty block at the end."""
    size = 0
    with _open(path) as opened:
        while True:
            try:
                block = opened.read(BLOCK_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(
                    f"{path}: the gzip data is damaged after {size} bytes of text ({error})"
                ) from None
            size += len(block)
            if not size:
                raise DataError(f"{path} is empty")
            yield block
            if not block:
                return


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a file without their `\n`; a last line may lack it. Raises as `read_blocks`."""
    number, carry = 1, ""
    for block in read_blocks(path):
        *lines, carry = (carry + block).split("\n")
        yield from lines
        number += len(lines)
        if len(carry) > MAX_LINE:
            raise DataError(
                f"{path}, line {number} is longer than {MAX_LINE:,} characters; expected a sentence a line"
            )
    if carry:
        yield carry


def hash_file(path: Path) -> str:
    """Return the sha256 of the bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, whenever the process or the machine stops."""
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
