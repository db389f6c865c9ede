"""Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909, over bytes as in GPT-2).

The merges are learned and applied by the `tokenizers` library; ids are turned back into bytes here, so that
decoding is exact and a half-finished character is seen as what it is. Every byte is a token, so any text
has an encoding and there is no unknown token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from .errors import DataError
from .files import find_file
from .tokenizer import N_SPECIAL, Tokenizer, utf8

# The brackets are outside the byte-level alphabet, so no merge can ever spell a special token.
PAD, BOS, EOS = SPECIAL_TOKENS = ("⟨pad⟩", "⟨bos⟩", "⟨eos⟩")
MIN_VOCAB_SIZE = N_SPECIAL + 256
PROBE = "Aa  \n\n\t x\r\n don't 12345 \u00a0\u2028\x00 e\u0301 é ﬁ 中文 😀👩‍🚀 <pad></s><|endoftext|>[CLS] "


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's table that shows each byte as one printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class BPETokenizer(Tokenizer):
    """A byte-level BPE, defined by the JSON form of the `tokenizers` library."""

    kind = "bpe"

    def __init__(self, spec: dict[str, Any], pad: str = PAD, bos: str = BOS, eos: str = EOS) -> None:
        """Take the content of a `tokenizer.json` and the names of its special tokens.

        Names that it lacks are added after its last id. DataError for what is not an exact byte-level BPE.
        """
        self._spec, self._names = _with_special_tokens(spec, (pad, bos, eos)), (pad, bos, eos)
        self._backend = _backend(self._spec)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.pad, self.bos, self.eos = (vocabulary[name] for name in self._names)
        super().__init__(_bytes_of_tokens(self._spec, vocabulary))
        others = (token["content"] for token in self._spec["added_tokens"])
        self._special = {name: vocabulary[name] for name in others if name not in self._names}
        self._check_round_trip()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            utf8(text)
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def payload(self) -> dict[str, Any]:
        pad, bos, eos = self._names
        return {"kind": self.kind, "pad": pad, "bos": bos, "eos": eos, "tokenizer": self._spec}

    def _check_round_trip(self) -> None:
        if self.decode(self.encode(PROBE)) != PROBE:
            raise DataError(
                "it changes text (decode(encode(text)) differs from text); "
                "use a byte-level BPE without normalizer and prefix space"
            )


def _with_special_tokens(spec: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Check the parts of a `tokenizer.json` relied on here and add the missing special tokens."""
    model, added = spec.get("model"), spec.get("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not isinstance(added, list):
        raise DataError("it has no vocabulary; give a byte-level BPE of the 'tokenizers' library")
    if model.get("type", "BPE") != "BPE" or (spec.get("decoder") or {}).get("type") != "ByteLevel":
        raise DataError("it is no byte-level BPE, the only kind that keeps every text exactly")
    if model.get("dropout"):
        raise DataError("it has BPE dropout, which makes encoding random; set its dropout to null")
    for token in added:
        if not token["special"]:
            raise DataError(f"added token {token['content']!r} is not special; text would be parsed for it")
    ids = [*model["vocab"].values(), *(token["id"] for token in added)]
    present = {token["content"] for token in added}
    missing = [name for name in dict.fromkeys(names) if name not in present]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    new = [{"id": max(ids) + 1 + i, "content": name, **flags} for i, name in enumerate(missing)]
    return {**spec, "truncation": None, "padding": None, "post_processor": None, "added_tokens": added + new}


def _backend(spec: dict[str, Any]) -> Backend:
    try:
        backend = Backend.from_str(json.dumps(spec))
    except Exception as error:  # the library raises bare Exception for any malformed content
        raise DataError(f"the 'tokenizers' library refuses it: {error}") from None
    backend.encode_special_tokens = True  # "<eos>" in a text is five characters, not the end
    return backend


def _bytes_of_tokens(spec: dict[str, Any], vocabulary: dict[str, int]) -> list[bytes]:
    alphabet = byte_alphabet()
    special = {token["content"] for token in spec["added_tokens"]}
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if token in special:
            continue
        if not all(character in alphabet for character in token):
            raise DataError(f"token {token!r} is not spelled in the byte-level alphabet")
        table[index] = bytes(alphabet[character] for character in token)
    missing = set(range(256)) - {entry[0] for entry in table if len(entry) == 1}
    if missing:
        raise DataError(f"byte 0x{min(missing):02x} has no token of its own")
    return table


@dataclass(frozen=True)
class BPEConfig:
    """A BPE of `vocab_size` tokens learned from the data, or read from the `tokenizer.json` at `path`."""

    kind: ClassVar[str] = "bpe"
    sees_every_split: ClassVar[bool] = False

    vocab_size: Annotated[int, Ge(MIN_VOCAB_SIZE)] = 8000
    path: str | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise DataError(
                f"vocab_size {self.vocab_size} is too small for a byte-level BPE: 256 bytes and {N_SPECIAL} "
                f"special tokens need at least {MIN_VOCAB_SIZE}"
            )

    def train(self, texts: Iterable[str]) -> BPETokenizer:
        """Learn the merges from `texts` (deterministic), or read `path` and leave `texts` unread."""
        if self.path is not None:
            return read_tokenizer_json(Path(self.path))
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(byte_alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_utf8_only(texts), trainer)
        return BPETokenizer(json.loads(backend.to_str()))


def _utf8_only(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        utf8(text)
        yield text


def read_tokenizer_json(path: Path) -> BPETokenizer:
    """Read a `tokenizer.json` of the `tokenizers` library. DataError names the file and what is wrong."""
    found = find_file(path)
    try:
        spec = json.loads(found.read_bytes())
    except (ValueError, RecursionError):
        raise DataError(f"{found} is not JSON; give a tokenizer.json of the 'tokenizers' library") from None
    if not isinstance(spec, dict):
        raise DataError(f"{found} holds no JSON object; give a tokenizer.json of the 'tokenizers' library")
    try:
        return BPETokenizer(spec)
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{found}: {error}") from None
