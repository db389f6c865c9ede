"""Text to token ids and back, exactly: `decode(encode(text)) == text` for any Unicode text.

Every tokenizer maps an id to a fixed byte string (`token_bytes`; empty for special tokens), so that decoding is
always the same three steps: look up, join, read as UTF-8. Special tokens have ids of their own and no
spelling: text that looks like one is encoded as ordinary text. Every tokenizer has `pad`, `bos` and `eos`;
`with_special` gives it more, such as a mask token, behind the last id: the ids of text stay as they were.
"""

from __future__ import annotations

import codecs
import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .errors import DataError
from .files import write_atomically

N_SPECIAL = 3
"""Tokenizers made here give `pad`, `bos` and `eos` the ids 0, 1 and 2."""


class Tokenizer(ABC):
    """What every tokenizer offers. Instances never change."""

    kind: ClassVar[str]
    blank_first: bool = False  # whether every text is encoded as if it began with a blank
    pad: int = 0
    bos: int = 1
    eos: int = 2

    def __init__(self, table: list[bytes]) -> None:
        """`table` holds the bytes of each token, none for the special ones."""
        self._table = table
        self._special: dict[str, int] = {}  # by name: those that the subclass knows, and then the added ones
        self._added: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        """How many ids there are, special tokens included."""
        return len(self._table)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens. DataError for text that has no encoding."""

    @abstractmethod
    def payload(self) -> dict[str, Any]:
        """Return what defines this tokenizer as JSON data, `kind` included, apart from tokens added to it."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode(text)` for each text."""
        return [self.encode(text) for text in texts]

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a text to be continued; a text that has none begins with `bos`."""
        return self.encode(text) or [self.bos]

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of a chat template's text, which may spell special tokens; here none has a spelling."""
        return self.encode(text)

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return (self.eos,)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`, special tokens left out.

        Bytes that are not UTF-8, which a model can produce but `encode` cannot, become U+FFFD. IndexError for
        an id outside the vocabulary.
        """
        tokens = list(tokens)
        self._check(tokens)
        return b"".join([self._table[token] for token in tokens]).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of `token`: none for a special token, perhaps a part of a character."""
        self._check([token])
        return self._table[token]

    def with_special(self, names: Iterable[str]) -> Tokenizer:
        """Return this tokenizer with special tokens of these names; those that it lacks get the next ids, in order."""
        missing = tuple(name for name in dict.fromkeys(names) if name not in self._special)
        more = copy.copy(self)
        more._table = [*self._table, *(b"" for _ in missing)]
        more._special = self._special | {name: self.vocab_size + i for i, name in enumerate(missing)}
        more._added = self._added + missing
        return more

    def special(self, name: str) -> int:
        """Return the id of the special token of this name. DataError for one that the tokenizer lacks."""
        if name not in self._special:
            known = (
                f"it has {', '.join(self._special)}" if self._special else "it has none but pad, bos and eos"
            )
            raise DataError(f"the tokenizer has no special token {name!r}; {known}")
        return self._special[name]

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of all special tokens, in ascending order."""
        return tuple(sorted({self.pad, self.bos, self.eos, *self._special.values()}))

    def _content(self) -> dict[str, Any]:
        """What defines this tokenizer, with the tokens that `with_special` added."""
        return {**self.payload(), "special": list(self._added)} if self._added else self.payload()

    @property
    def fingerprint(self) -> str:
        """The sha256 of the canonical JSON form: equal exactly when two tokenizers are the same."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the content of the file that `save` writes: indented JSON in UTF-8."""
        return (json.dumps(self._content(), ensure_ascii=False, indent=1) + "\n").encode()

    def save(self, path: Path) -> None:
        """Write this tokenizer as one readable JSON file, atomically."""
        write_atomically(path, self.to_bytes())

    def _check(self, tokens: list[int]) -> None:
        for token in (min(tokens, default=0), max(tokens, default=0)):
            if not 0 <= token < self.vocab_size:
                raise IndexError(f"token {token} is outside the vocabulary of {self.vocab_size} tokens")


def utf8(text: str) -> bytes:
    """Return `text` as UTF-8; DataError naming the position of a lone surrogate, which is no character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"character {error.start} of the text is the lone surrogate U+{code:04X}; give Unicode text"
        ) from None


class ByteTokenizer(Tokenizer):
    """One token per UTF-8 byte: 256 tokens and the three special ones."""

    kind = "byte"

    def __init__(self) -> None:
        super().__init__([b""] * N_SPECIAL + [bytes([byte]) for byte in range(256)])

    def encode(self, text: str) -> list[int]:
        return [byte + N_SPECIAL for byte in utf8(text)]

    def payload(self) -> dict[str, Any]:
        return {"kind": self.kind}


class CharacterTokenizer(Tokenizer):
    """One token per character (Unicode code point) of a fixed alphabet."""

    kind = "character"

    def __init__(self, alphabet: Iterable[str]) -> None:
        """`alphabet` is any text: its distinct characters, in code-point order, become the vocabulary."""
        self.alphabet = "".join(sorted(set(alphabet)))
        if not self.alphabet:
            raise DataError("a character tokenizer needs at least one character in its alphabet")
        utf8(self.alphabet)
        super().__init__([b""] * N_SPECIAL + [character.encode() for character in self.alphabet])
        self._codes = _code_points(self.alphabet)

    def encode(self, text: str) -> list[int]:
        utf8(text)
        codes = _code_points(text)
        index = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        unknown = np.flatnonzero(self._codes[index] != codes)
        if len(unknown):
            self._refuse(text, int(unknown[0]))
        tokens: list[int] = (index + N_SPECIAL).tolist()
        return tokens

    def payload(self) -> dict[str, Any]:
        return {"kind": self.kind, "alphabet": self.alphabet}

    def _refuse(self, text: str, position: int) -> None:
        character = text[position]
        case = character.swapcase()
        advice = f"; {case!r} is in it" if case != character and case in self.alphabet else ""
        raise DataError(
            f"character {position} of the text, {character!r} (U+{ord(character):04X}), is not in the "
            f"alphabet of {len(self.alphabet)} characters{advice}; a byte or bpe tokenizer encodes any text"
        )


def _code_points(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class StreamDecoder:
    """Decode tokens one at a time without ever splitting a character.

    The concatenation of what `push` and a last `finish` return equals `tokenizer.decode` of all tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return the characters that `token` completes, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """Return U+FFFD for an unfinished character at the end, or nothing."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True)
class CharacterConfig:
    """A character tokenizer of the characters that occur in the data."""

    kind: ClassVar[str] = "character"
    sees_every_split: ClassVar[bool] = True  # a character missing from its alphabet could not be encoded

    def train(self, texts: Iterable[str]) -> CharacterTokenizer:
        """Return the tokenizer of all characters in `texts`."""
        alphabet: set[str] = set()
        for text in texts:
            alphabet.update(text)
        return CharacterTokenizer(alphabet)


@dataclass(frozen=True)
class ByteConfig:
    """A byte tokenizer: nothing to learn."""

    kind: ClassVar[str] = "byte"
    sees_every_split: ClassVar[bool] = False

    def train(self, texts: Iterable[str]) -> ByteTokenizer:
        """Return the byte tokenizer; `texts` are not read."""
        return ByteTokenizer()
