"""Parallel text: from two files of sentences, line by line translations of each other, to batches.

A folder holds `{split}.{language}` or `{split}.{language}.gz` for each split and language. One tokenizer
serves both languages (arXiv 1706.03762, §5.1), so that all three embeddings can be tied. It is learned from
the training split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from .arrays import ArrayWriter
from .bpe import BPEConfig
from .errors import DataError, nearest
from .files import find_file, read_lines
from .loading import TokenizerConfig
from .pairs import PairEvaluation, Pairs, PairStream, Sentences
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
from .tokenizer import Tokenizer

PAIRS_AT_ONCE = 4096
SplitFiles = dict[str, tuple[Path, Path]]


@dataclass(frozen=True)
class ParallelData(FileData):
    """The `data` section of a translation run. The defaults are Multi30k, German to English.

    `path` is a folder of raw files or one that `transformer prepare` wrote. `train`, `validation` and `test`
    name the raw files' splits; `test: null` does without. A batch holds at most `batch_tokens` tokens,
    source, target and padding added up; training pairs wider than `max_length` tokens on a side are left out,
    evaluation pairs never. A pair with an empty side is refused by name and line, or left out everywhere with
    `empty_lines: skip`. What is prepared on the way is kept in `cache` (default: `.prepared` next to `path`).
    """

    kind: ClassVar[str] = "parallel"

    path: str = "data/multi30k"
    source_language: str = "de"
    target_language: str = "en"
    train: str = "train"
    validation: str = "val"
    test: str | None = "test_2016_flickr"
    tokenizer: TokenizerConfig = field(default_factory=BPEConfig)
    batch_tokens: Annotated[int, Ge(1)] = 4096
    max_length: Annotated[int, Ge(3)] = 256
    empty_lines: Literal["refuse", "skip"] = "refuse"
    cache: str | None = None

    def __post_init__(self) -> None:
        for language in (self.source_language, self.target_language):
            if not re.fullmatch(r"[\w-]+", language):
                raise DataError(
                    f"{language!r} is no language code; expected the ending of a file name, such as 'de'"
                )
        if self.source_language == self.target_language:
            raise DataError(
                f"source_language and target_language are both {self.source_language!r}; give two languages"
            )

    @property
    def languages(self) -> tuple[str, str]:
        """Both languages in alphabetical order: the prepared form serves both directions."""
        first, second = sorted((self.source_language, self.target_language))
        return first, second

    def files(self) -> SplitFiles:
        """Return the two raw files of each split, in the order of `languages`."""
        folder = Path(self.path)
        if not folder.is_dir():
            raise DataError(
                f"data.path {self.path!r} is not a folder{_near_folder(folder)}; give one with parallel files"
            )
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        first, second = self.languages
        return {
            split: (find_file(folder / f"{name}.{first}"), find_file(folder / f"{name}.{second}"))
            for split, name in names.items()
            if name is not None
        }

    def settings(self) -> dict[str, Any]:
        """Return what, besides the raw files, decides the prepared form."""
        return {
            "languages": list(self.languages),
            "tokenizer": tokenizer_settings(self.tokenizer),
            "empty_lines": self.empty_lines,
        }

    def load(self) -> ParallelCorpus:
        """Open the prepared data, preparing it first unless that was done before."""
        return ParallelCorpus(self, find_or_prepare(self, _prepare))

    def prepare(self, output: Path) -> ParallelCorpus:
        """Turn the raw files into the new folder `output`, as `prepare_parallel` says."""
        return prepare_parallel(self, output)


def _near_folder(folder: Path) -> str:
    parent = folder.parent
    return nearest(folder.name, [path.name for path in parent.iterdir()]) if parent.is_dir() else ""


def prepare_parallel(config: ParallelData, output: Path) -> ParallelCorpus:
    """Tokenize the raw files of `config` into the new folder `output`, in bounded memory.

    DataError names the file and line of anything that cannot be used; nothing is then left behind.
    """
    refuse_existing(output)
    _prepare(config, output)
    return ParallelCorpus(config, output)


def _prepare(config: ParallelData, output: Path) -> None:
    files = config.files()
    with building(output) as folder:
        builder = Builder(folder, config.kind, config.settings(), _train_tokenizer(config, files))
        counts = {split: _write_split(config, builder, split, paths) for split, paths in files.items()}
        builder.finish(hash_sources(files), counts)


def _train_tokenizer(config: ParallelData, files: SplitFiles) -> Tokenizer:
    splits = files if config.tokenizer.sees_every_split else ["train"]
    pairs = chain.from_iterable(read_pairs(*files[split], config.empty_lines) for split in splits)
    return config.tokenizer.train(chain.from_iterable(pairs))


def read_pairs(
    first: Path, second: Path, empty_lines: Literal["refuse", "skip"]
) -> Iterator[tuple[str, str]]:
    """Yield the pairs of lines of two files.

    DataError for files of unequal length, for a line that ends in CR LF and, unless such lines are to be
    skipped later, for an empty line.
    """
    for number, (left, right) in enumerate(zip_longest(read_lines(first), read_lines(second)), start=1):
        if left is None or right is None:
            _refuse_unequal(first, second)
        for path, line in ((first, left), (second, right)):
            if line.endswith("\r"):
                raise DataError(f"{path}, line {number} ends with CR LF; convert the file to \\n line ends")
            if not line.strip() and empty_lines == "refuse":
                raise DataError(f"{path}, line {number} is empty; fill it in or set data.empty_lines: skip")
        yield left, right


def _refuse_unequal(first: Path, second: Path) -> None:
    counts = [sum(1 for _ in read_lines(path)) for path in (first, second)]
    raise DataError(
        f"{first} has {counts[0]} lines but {second} has {counts[1]}; "
        "line i of one must translate line i of the other"
    )


def _write_split(
    config: ParallelData, builder: Builder, split: str, paths: tuple[Path, Path]
) -> dict[str, int]:
    first, second = (f"{split}.{language}" for language in config.languages)
    n_lines, n_pairs, pairs = 0, 0, read_pairs(*paths, config.empty_lines)
    with (
        builder.tokens(f"{first}.tokens") as first_tokens,
        builder.offsets(f"{first}.offsets") as first_offsets,
        builder.tokens(f"{second}.tokens") as second_tokens,
        builder.offsets(f"{second}.offsets") as second_offsets,
    ):
        sides = (_SideWriter(first_tokens, first_offsets), _SideWriter(second_tokens, second_offsets))
        while some := list(islice(pairs, PAIRS_AT_ONCE)):
            kept = [pair for pair in some if all(text.strip() for text in pair)]
            for index, side in enumerate(sides):
                side.write(_encode(builder.tokenizer, paths[index], [pair[index] for pair in kept]))
            n_lines += len(some)
            n_pairs += len(kept)
    if not n_pairs:
        raise DataError(f"{paths[0]} and {paths[1]} hold no pair without an empty side; give at least one")
    tokens = {f"tokens.{name}": side.total for name, side in zip(config.languages, sides, strict=True)}
    return {"pairs": n_pairs, "skipped": n_lines - n_pairs, **tokens}


class _SideWriter:
    """One language of one split: tokens, and where each sentence begins and ends."""

    def __init__(self, tokens: ArrayWriter, offsets: ArrayWriter) -> None:
        self._tokens, self._offsets, self.total = tokens, offsets, 0
        offsets.write([0])

    def write(self, sentences: list[list[int]]) -> None:
        lengths = [len(sentence) for sentence in sentences]
        self._tokens.write(list(chain.from_iterable(sentences)))
        self._offsets.write(self.total + np.cumsum(lengths, dtype=np.int64))
        self.total += sum(lengths)


def _encode(tokenizer: Tokenizer, path: Path, texts: list[str]) -> list[list[int]]:
    try:
        return tokenizer.encode_batch(texts)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


class ParallelCorpus(PreparedCorpus[ParallelData]):
    """Prepared parallel data, ready to train on and to evaluate with."""

    def __init__(self, config: ParallelData, folder: Path) -> None:
        super().__init__(config, folder)
        self._splits = {split: self._open(split) for split in self._prepared.counts}

    def pairs(self, split: str) -> Pairs:
        """Return a split's pairs. DataError for one that the data does not have."""
        self.require_split(split)
        return self._splits[split]

    def stream(self, seed: int) -> PairStream:
        """Return the training batches as a function of the step."""
        config = self.config
        return PairStream(
            self.pairs("train"), batch_tokens=config.batch_tokens, max_length=config.max_length, seed=seed
        )

    def evaluation(self, split: str = "validation") -> PairEvaluation:
        """Return the batches that cover `split` exactly once."""
        return PairEvaluation(self.pairs(split), batch_tokens=self.config.batch_tokens)

    def sentences(self, split: str) -> list[tuple[str, str]]:
        """Return the (source, target) texts of `split`, exactly as in the files and in their order."""
        pairs, decode = self.pairs(split), self.tokenizer.decode
        return [(decode(pairs.source[i]), decode(pairs.target[i])) for i in range(len(pairs.source))]

    def _open(self, split: str) -> Pairs:
        source, target = (
            self._sentences(f"{split}.{language}")
            for language in (self.config.source_language, self.config.target_language)
        )
        if len(source) != len(target):
            raise DataError(
                f"{self.folder}: {split} has {len(source)} source but {len(target)} target sentences"
            )
        return Pairs(source, target, self.tokenizer.pad, self.tokenizer.bos, self.tokenizer.eos)

    def _sentences(self, name: str) -> Sentences:
        tokens = self._prepared.tokens(f"{name}.tokens")
        offsets = self._prepared.array(f"{name}.offsets")
        ends_fit = len(offsets) > 1 and offsets[0] == 0 and offsets[-1] == len(tokens)
        if not ends_fit or not np.all(offsets[:-1] <= offsets[1:]):
            raise DataError(
                f"{self.folder}/{name}.offsets.bin does not fit the tokens; prepare the data again"
            )
        return Sentences(tokens, offsets)
