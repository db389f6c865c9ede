"""The table of tokenizers, and reading one back from the file it was saved to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from .bpe import BPEConfig, BPETokenizer
from .errors import DataError, nearest
from .files import find_file
from .symbols import SymbolTokenizer
from .tokenizer import ByteConfig, ByteTokenizer, CharacterConfig, CharacterTokenizer, Tokenizer

KINDS = ("bpe", "byte", "character", "symbols")


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a file that `Tokenizer.save` wrote. DataError names the file and what is wrong with it."""
    found = find_file(path)
    return parse_tokenizer(found.read_bytes(), str(found))


def parse_tokenizer(content: bytes, name: str) -> Tokenizer:
    """Return the tokenizer whose file has this `content`; `name` is what errors call it."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{name} is not JSON; expected a tokenizer saved by this project") from None
    try:
        if (tokenizer := _parse(data)) is not None:
            return tokenizer.with_special(_added(data))
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"{name} is no usable tokenizer: {error}") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind in KINDS:
        raise DataError(f"{name} lacks a part of a {kind} tokenizer; give a file saved by this project")
    hint = nearest(kind, KINDS) if isinstance(kind, str) else ""
    raise DataError(f"{name} has tokenizer kind {kind!r}; expected one of {', '.join(KINDS)}{hint}")


def _parse(data: Any) -> Tokenizer | None:
    """Return the tokenizer that a file's content describes, before the special tokens added to it."""
    match data:
        case {"kind": "byte"}:
            return ByteTokenizer()
        case {"kind": "character", "alphabet": str(alphabet)}:
            return CharacterTokenizer(alphabet)
        case {"kind": "symbols", "vocab_size": int(size)} if 0 < size <= 1 << 20:
            return SymbolTokenizer(size)
        case {"kind": "bpe", "tokenizer": dict(spec), "pad": str(pad), "bos": str(bos), "eos": str(eos)}:
            return BPETokenizer(spec, pad=pad, bos=bos, eos=eos)
    return None


def _added(data: Any) -> list[str]:
    """The names of the special tokens that were added; files of former versions have none."""
    names = data.get("special", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("its 'special' must be a list of names")
    return names


@dataclass(frozen=True)
class SavedConfig:
    """A tokenizer as this project saved it: the `tokenizer.json` of a checkpoint, say; nothing is learned."""

    kind: ClassVar[str] = "saved"
    sees_every_split: ClassVar[bool] = False

    path: str

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Read the file; `texts` are not read."""
        return load_tokenizer(Path(self.path))


TokenizerConfig: TypeAlias = CharacterConfig | ByteConfig | BPEConfig | SavedConfig
