"""The table of tokenizers, and reading one back from the file it was saved to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from .bpe import BPEConfig, BPETokenizer
from .errors import DataError, nearest
from .files import find_file
from .tokenizer import ByteConfig, ByteTokenizer, CharacterConfig, CharacterTokenizer, Tokenizer

TokenizerConfig: TypeAlias = CharacterConfig | ByteConfig | BPEConfig

KINDS = ("bpe", "byte", "character")


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
        match data:
            case {"kind": "byte"}:
                return ByteTokenizer()
            case {"kind": "character", "alphabet": str(alphabet)}:
                return CharacterTokenizer(alphabet)
            case {"kind": "bpe", "tokenizer": dict(spec), "pad": str(pad), "bos": str(bos), "eos": str(eos)}:
                return BPETokenizer(spec, pad=pad, bos=bos, eos=eos)
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"{name} is no usable tokenizer: {error}") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind in KINDS:
        raise DataError(f"{name} lacks a part of a {kind} tokenizer; give a file saved by this project")
    hint = nearest(kind, KINDS) if isinstance(kind, str) else ""
    raise DataError(f"{name} has tokenizer kind {kind!r}; expected one of {', '.join(KINDS)}{hint}")
