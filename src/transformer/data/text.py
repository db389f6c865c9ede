"""Running text: from one file or a folder of files to windows of tokens.

The files of a folder, in the order of their names, are documents of one text, with eos between two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Lt

from .arrays import IntArray
from .errors import DataError, nearest
from .files import find_file, read_blocks
from .loading import TokenizerConfig
from .prepared import (
    Builder,
    FileData,
    PreparedCorpus,
    building,
    find_or_prepare,
    hash_sources,
    refuse_existing,
    tokenizer_settings,
)
from .tokenizer import CharacterConfig, Tokenizer
from .windows import TextEvaluation, TextStream

MAX_BLOCK = 1 << 20
BLOCKS_AT_ONCE = 32


@dataclass(frozen=True)
class TextData(FileData):
    """The `data` section of a language-model run. The defaults are Tiny Shakespeare by characters.

    `path` is a text file (`.txt` or `.gz`), a folder of them, or a folder that `transformer prepare` wrote.
    The last `validation_fraction` of its characters is for validation, unless `validation` names a file of
    its own; `test` may name another. A batch is `batch_size` windows of `context` tokens. What is prepared on
    the way is kept in `cache` (default: `.prepared` next to `path`).
    """

    kind: ClassVar[str] = "text"

    path: str = "data/tinyshakespeare"
    validation: str | None = None
    test: str | None = None
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    tokenizer: TokenizerConfig = field(default_factory=CharacterConfig)
    context: Annotated[int, Ge(1)] = 256
    batch_size: Annotated[int, Ge(1)] = 64
    cache: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise DataError(
                f"validation_fraction {self.validation_fraction} must lie between 0 and 1, such as 0.1"
            )

    def files(self) -> dict[str, list[Path]]:
        """Return the raw files of each split.

        Those of "train" hold the validation text as well, unless `validation` names a file.
        """
        named = {"validation": self.validation, "test": self.test}
        return {
            "train": _text_files(Path(self.path)),
            **{split: _text_files(Path(name)) for split, name in named.items() if name is not None},
        }

    def settings(self) -> dict[str, Any]:
        """Return what, besides the raw files, decides the prepared form."""
        return {
            "tokenizer": tokenizer_settings(self.tokenizer),
            "validation_fraction": self.validation_fraction,
        }

    def load(self) -> TextCorpus:
        """Open the prepared data, preparing it first unless that was done before."""
        return TextCorpus(self, find_or_prepare(self, _prepare))

    def prepare(self, output: Path) -> TextCorpus:
        """Turn the raw files into the new folder `output`, as `prepare_text` says."""
        return prepare_text(self, output)


def _text_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [find_file(path)]
    entries = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    files = [entry for entry in entries if entry.suffix in (".txt", ".gz")]
    if not files:
        raise DataError(
            f"{path} has no .txt or .gz file{nearest('input.txt', [entry.name for entry in entries])}"
        )
    return files


@dataclass(frozen=True)
class Segment:
    """Characters `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int

    def blocks(self) -> Iterator[str]:
        """Yield the text in blocks. Raises as `read_blocks`."""
        position = 0
        for block in read_blocks(self.path):
            piece = block[max(0, self.start - position) : max(0, self.stop - position)]
            position += len(block)
            if piece:
                yield piece
            if position >= self.stop:
                return


def split_segments(config: TextData) -> dict[str, list[Segment]]:
    """Return which characters of which files make up each split; every file is read, and so checked."""
    whole = {
        split: [Segment(path, 0, sum(map(len, read_blocks(path)))) for path in paths]
        for split, paths in config.files().items()
    }
    if "validation" in whole:
        return whole
    train, cut = (
        whole["train"],
        int(sum(part.stop for part in whole["train"]) * (1 - config.validation_fraction)),
    )
    before, after = [], []
    for part in train:
        middle = min(max(cut, 0), part.stop)
        cut -= part.stop
        before += [Segment(part.path, 0, middle)] if middle else []
        after += [Segment(part.path, middle, part.stop)] if middle < part.stop else []
    return {**whole, "train": before, "validation": after}


def whole_lines(blocks: Iterable[str]) -> Iterator[str]:
    r"""Cut the same text anew, where no tokenizer joins what stands on both sides.

    That is after a single `\n` between two characters that are not blank: byte-level BPEs never merge across
    it, so that tokenizing the pieces gives the tokens of the whole. Text without such a place is cut after
    1 MiB.
    """
    carry = ""
    for block in blocks:
        carry += block
        cut = len(carry) if len(carry) > MAX_BLOCK else _last_cut(carry)
        if cut:
            yield carry[:cut]
            carry = carry[cut:]
    if carry:
        yield carry


def _last_cut(text: str) -> int:
    at = text.rfind("\n", 1, len(text) - 1)
    while at > 0 and (text[at - 1].isspace() or text[at + 1].isspace()):
        at = text.rfind("\n", 1, at)
    return at + 1 if at > 0 else 0


def prepare_text(config: TextData, output: Path) -> TextCorpus:
    """Tokenize the raw files of `config` into the new folder `output`, in bounded memory.

    DataError names the file and line of anything that cannot be used; nothing is then left behind.
    """
    refuse_existing(output)
    _prepare(config, output)
    return TextCorpus(config, output)


def _prepare(config: TextData, output: Path) -> None:
    segments = split_segments(config)
    with building(output) as folder:
        seen = segments if config.tokenizer.sees_every_split else ["train"]
        texts = chain.from_iterable(part.blocks() for split in seen for part in segments[split])
        builder = Builder(folder, config.kind, config.settings(), config.tokenizer.train(texts))
        counts = {split: _write_split(builder, split, parts) for split, parts in segments.items()}
        builder.finish(hash_sources(config.files()), counts)


def _write_split(builder: Builder, split: str, segments: list[Segment]) -> dict[str, int]:
    tokenizer: Tokenizer = builder.tokenizer
    tokens = characters = size = 0
    with builder.tokens(split) as writer:
        for number, segment in enumerate(segments):
            if number:
                writer.write([tokenizer.eos])
                tokens += 1
            pieces = whole_lines(segment.blocks())
            while some := list(islice(pieces, BLOCKS_AT_ONCE)):
                for piece, ids in zip(some, _encode(tokenizer, segment.path, some), strict=True):
                    writer.write(ids)
                    tokens += len(ids)
                    characters += len(piece)
                    size += len(piece.encode())
    return {"tokens": tokens, "characters": characters, "bytes": size}


def _encode(tokenizer: Tokenizer, path: Path, texts: list[str]) -> list[list[int]]:
    try:
        return tokenizer.encode_batch(texts)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


class TextCorpus(PreparedCorpus[TextData]):
    """Prepared running text, ready to train on and to evaluate with."""

    def __init__(self, config: TextData, folder: Path) -> None:
        super().__init__(config, folder)
        self._splits = {split: self._prepared.tokens(split) for split in self._prepared.counts}

    def tokens(self, split: str) -> IntArray:
        """Return a split's tokens, mapped from disk. DataError for one that the data does not have."""
        self.require_split(split)
        return self._splits[split]

    def stream(self, seed: int, *, margin: int = 0) -> TextStream:
        """Return the training batches as a function of the step; windows leave `margin` of the context free."""
        config = self.config
        context = config.context - margin
        return TextStream(self.tokens("train"), context=context, batch_size=config.batch_size, seed=seed)

    def evaluation(self, split: str = "validation", *, margin: int = 0) -> TextEvaluation:
        """Return the batches that predict every token of `split` but the first exactly once."""
        tokens, config = self.tokens(split), self.config
        n_bytes = self.counts[split]["bytes"] - len(self.tokenizer.token_bytes(int(tokens[0])))
        return TextEvaluation(
            tokens, context=config.context - margin, batch_size=config.batch_size, n_bytes=n_bytes
        )
