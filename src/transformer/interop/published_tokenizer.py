"""Tokenizers as others publish them: the `tokenizer.json` of a model directory, and what stands beside it.

The `tokenizers` library encodes. Ids are turned back into bytes here, so that text can be shown token by token and no
character is ever split: each id has the bytes that it stands for, which a decoder of one of three kinds says,

    byte level      "Ġthe" → " the"     one printable character for each byte (GPT-2)
    SentencePiece   "▁the" → " the"     and <0xE2> is a byte (LLaMA, Gemma, T5)
    WordPiece       "the" → " the", "##ing" → "ing" (BERT)

Special tokens in a text are text, unless it comes from a chat template (`encode_template`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from ..data import Tokenizer
from ..data.bpe import byte_alphabet
from ..data.tokenizer import utf8
from ..training import strict_json
from ..training.strict_json import CheckpointError

TOKENIZER, SETTINGS, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, CONFIG = "generation_config.json", "config.json"
MAX_BYTES = 2**27
"""Of a tokenizer.json: some hundred thousand tokens and their merges have less."""
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
NONE = -1
"""The id of a special token that a tokenizer does not have."""


@dataclass(frozen=True)
class Specials:
    """What the files beside a tokenizer say of it.

    bos, eos, pad: ids, `NONE` where there is none. stops: the tokens that end a text. prefix: what every prompt
    begins with.
    """

    bos: int = NONE
    eos: int = NONE
    pad: int = NONE
    stops: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()


class PublishedTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library."""

    kind = "published"

    def __init__(self, backend: Backend, specials: Specials) -> None:
        backend.encode_special_tokens = True  # "</s>" in a text is four characters, not the end
        backend.no_padding()
        backend.no_truncation()
        self._backend, self._specials = backend, specials
        self.bos, self.eos, self.pad = specials.bos, specials.eos, specials.pad
        spec = json.loads(backend.to_str())
        super().__init__(_table(backend, spec))
        names = {token["content"]: token["id"] for token in spec.get("added_tokens", []) if token["special"]}
        self._special = self._special | names
        self.blank_first = _strips_blank(spec)

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self._specials.stops

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            utf8(text)
        return [x.ids for x in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a text to be continued, behind what the model's makers put before every text."""
        ids = [*self._specials.prefix, *self.encode(text)]
        if not ids and self.bos == NONE:
            raise ValueError(
                "the prompt is empty, and this tokenizer has no token to begin a text with; give a prompt"
            )
        return ids or [self.bos]

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of a text in which special tokens are spelled out, as chat templates spell them."""
        utf8(text)
        return list(self._reading_special.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _reading_special(self) -> Backend:
        backend = Backend.from_str(self._backend.to_str())
        backend.encode_special_tokens = False
        return backend

    def decode(self, tokens: Iterable[int]) -> str:
        text = super().decode(tokens)
        return text[1:] if self.blank_first and text[:1] == " " else text

    def special_name(self, token: int) -> str:
        """Return how a special token is spelled, nothing for one that the tokenizer does not have."""
        return "" if token == NONE else (self._backend.id_to_token(token) or "")

    def payload(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": json.loads(self._backend.to_str())}


def parse_published(content: bytes, where: str) -> Backend:
    """Return the backend that the content of a `tokenizer.json` describes."""
    try:
        return Backend.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception for any malformed content
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{where} is no tokenizer of the library tokenizers: {reason}") from None


def read_published(folder: Path) -> PublishedTokenizer:
    """Return the tokenizer of a model directory. ValueError in one line for one that is missing or malformed."""
    path = folder / TOKENIZER
    backend = parse_published(_read(path), str(path))
    settings = {**_table_of(folder / MAP), **_table_of(folder / SETTINGS)}
    ids = {kind: _id_of(backend, settings.get(f"{kind}_token")) for kind in ("bos", "eos", "pad")}
    stops = _ids(_table_of(folder / GENERATION).get("eos_token_id")) or (
        (ids["eos"],) if ids["eos"] != NONE else _ids(_table_of(folder / CONFIG).get("eos_token_id"))
    )
    prefix = _prefix(backend, settings.get("add_bos_token"), ids["bos"])
    try:
        return PublishedTokenizer(backend, Specials(**ids, stops=stops, prefix=prefix))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read(path: Path) -> bytes:
    size = strict_json.regular_size(path)
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} a tokenizer may have")
    return path.read_bytes()


def _table_of(path: Path) -> Mapping[str, Any]:
    """The content of a small file of settings, nothing where there is none."""
    if not path.exists():
        return {}
    data = strict_json.parse(strict_json.read(path), str(path))
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a table of settings")
    return data


def _id_of(backend: Backend, name: Any) -> int:
    """The id of a special token, which is named by its spelling or by a table that holds it."""
    spelling = name.get("content") if isinstance(name, dict) else name
    found = backend.token_to_id(spelling) if isinstance(spelling, str) else None
    return NONE if found is None else found


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(x for x in values if type(x) is int)


def _prefix(backend: Backend, add_bos: Any, bos: int) -> tuple[int, ...]:
    """What stands before a text: as `add_bos_token` says, or as the tokenizer's own template has it."""
    if isinstance(add_bos, bool):
        return (bos,) if add_bos and bos != NONE else ()
    encoding = backend.encode("a", add_special_tokens=True)
    count = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), 0)
    return tuple(encoding.ids[:count])


# ---------------------------------------------------------------- the bytes of each id


def _kinds(part: Any) -> Mapping[str, Mapping[str, Any]]:
    """The steps of a decoder by their type, those of a sequence one by one."""
    if not isinstance(part, dict):
        return {}
    steps = part.get("decoders", [part]) if part.get("type") == "Sequence" else [part]
    return {step["type"]: step for step in steps}


def _strips_blank(spec: Mapping[str, Any]) -> bool:
    """Whether the blank at the beginning of a decoded text is not part of it."""
    steps = _kinds(spec.get("decoder"))
    if "Metaspace" in steps:
        return bool(steps["Metaspace"].get("prepend_scheme", "always") != "never")
    return "Strip" in steps or "WordPiece" in steps


def _table(backend: Backend, spec: Mapping[str, Any]) -> list[bytes]:
    """The bytes of every id: none for special tokens, and for ids that no token has."""
    steps, alphabet = _kinds(spec.get("decoder")), byte_alphabet()
    added = {token["content"]: token["special"] for token in spec.get("added_tokens", [])}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    mark = steps.get("Metaspace", {}).get("replacement", "▁")
    for token, index in vocabulary.items():
        if token in added:
            table[index] = b"" if added[token] else token.replace(mark, " ").encode()
        elif "ByteLevel" in steps:
            table[index] = (
                bytes(alphabet[x] for x in token) if set(token) <= alphabet.keys() else token.encode()
            )
        elif "WordPiece" in steps:
            lead = steps["WordPiece"].get("prefix", "##")
            table[index] = (token.removeprefix(lead) if token.startswith(lead) else " " + token).encode()
        elif "Metaspace" in steps or "Replace" in steps:
            byte = BYTE.fullmatch(token) if "ByteFallback" in steps else None
            table[index] = bytes([int(byte[1], 16)]) if byte else token.replace(mark, " ").encode()
        else:
            raise CheckpointError(
                f"its decoder is {', '.join(steps) or 'missing'}, and only ByteLevel, Metaspace, Replace and "
                "WordPiece are read"
            )
    return table
