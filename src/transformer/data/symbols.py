"""Text that is numbers: the tokenizer of made tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import DataError
from .tokenizer import Tokenizer

BLANK = 0
"""The symbol that says nothing."""


class SymbolTokenizer(Tokenizer):
    """Symbols are written as numbers with blanks between them: `3 17 4`. 0 is padding, beginning and end as well."""

    kind = "symbols"
    pad = bos = eos = BLANK

    def __init__(self, vocab_size: int) -> None:
        super().__init__([f"{symbol} ".encode() for symbol in range(vocab_size)])

    def encode(self, text: str) -> list[int]:
        words: Sequence[str] = text.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and int(word) < self.vocab_size):
                raise DataError(
                    f"{word[:20]!r} is no symbol; symbols are the numbers from 0 to {self.vocab_size - 1}"
                )
        return [int(word) for word in words]

    def payload(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab_size": self.vocab_size}
