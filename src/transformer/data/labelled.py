"""Labelled text: files of texts with a class each, to batches of texts of similar length.

Two forms, told apart by the file's name:

- `.tsv`, as SST-2 comes: a text, a tab, its label; quotes are characters like others;
- `.csv`, as AG News comes: the label first, then the text in one field or several, which are joined by a blank; fields
  may stand in double quotes.

Either may be compressed (`.gz`). The classes are the labels of the training file, in order: of their numbers where all
are numbers, else of the alphabet.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from .arrays import ArrayWriter
from .bpe import BPEConfig
from .errors import DataError, nearest
from .examples import Examples, LabelledEvaluation, LabelledStream
from .files import find_file, read_lines
from .loading import TokenizerConfig
from .order import Indices, Permutation
from .pairs import Sentences
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

EXAMPLES_AT_ONCE = 4096
HEADERS = ("label", "labels", "class", "class index")
MOST_CLASSES = 1000
Row = tuple[int, str, str]  # line, text, label


@dataclass(frozen=True)
class LabelledData(FileData):
    """The `data` section of a run that learns to classify. The defaults are the names of SST-2's files.

    `path` is a folder of raw files or one that `transformer prepare` wrote. `train`, `validation` and `test` name files
    in it; without `validation`, a share of the training examples, drawn by chance, is kept for it. header: whether a
    first line names the columns; auto is where its label is the word "label" or "class". tokenizer: null is that of
    `model.init_from`, and without one a BPE. Texts of more than `max_length` tokens, bos and eos included, lose their
    end. What is prepared on the way is kept in `cache` (default: `.prepared` next to `path`).
    """

    kind: ClassVar[str] = "labelled"

    path: str = "data/sst2"
    train: str = "train.tsv"
    validation: str | None = "dev.tsv"
    test: str | None = None
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    header: Literal["auto", "yes", "no"] = "auto"
    tokenizer: TokenizerConfig | None = None
    batch_size: Annotated[int, Ge(1)] = 32
    max_length: Annotated[int, Ge(3)] = 128
    cache: str | None = None

    def files(self) -> dict[str, list[Path]]:
        """Return the raw file of each split; that of "train" holds the validation examples where they have none."""
        folder = Path(self.path)
        if not folder.is_dir():
            raise DataError(f"data.path {self.path!r} is not a folder; give one with files of labelled text")
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: [find_file(folder / name)] for split, name in names.items() if name is not None}

    def settings(self) -> dict[str, Any]:
        """Return what, besides the raw files, decides the prepared form."""
        fraction = {} if self.validation else {"validation_fraction": self.validation_fraction}
        tokenizer = tokenizer_settings(self.tokenizer or BPEConfig())
        return {"tokenizer": tokenizer, "header": self.header, **fraction}

    def load(self) -> LabelledCorpus:
        """Open the prepared data, preparing it first unless that was done before."""
        return LabelledCorpus(self, find_or_prepare(self, _prepare))

    def prepare(self, output: Path) -> LabelledCorpus:
        """Turn the raw files into the new folder `output`; DataError names the file and line of what is wrong."""
        refuse_existing(output)
        _prepare(self, output)
        return LabelledCorpus(self, output)


def read_labelled(path: Path, header: Literal["auto", "yes", "no"] = "auto") -> Iterator[tuple[str, str]]:
    """Yield the (text, label) of each example of a file. DataError names the line of one that is none."""
    yield from ((text, label) for _, text, label in _rows(path, header))


def _rows(path: Path, header: Literal["auto", "yes", "no"]) -> Iterator[Row]:
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in (".tsv", ".csv"):
        raise DataError(f"{path} is neither .tsv nor .csv (or these with .gz); rename it to what it is")
    rows = _tab_separated(path) if kind == ".tsv" else _comma_separated(path)
    for index, (line, text, label) in enumerate(rows):
        if index == 0 and (header == "yes" or (header == "auto" and label.lower() in HEADERS)):
            continue
        if not text.strip():
            raise DataError(f"{path}, line {line} has no text; fill it in or take the line out")
        if not label:
            raise DataError(f"{path}, line {line} has no label; fill it in or take the line out")
        yield line, text, label


def _tab_separated(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), start=1):
        text, tab, label = line.removesuffix("\r").rpartition("\t")
        if not tab:
            raise DataError(f"{path}, line {number} has no tab; expected a text, a tab and its label")
        yield number, text, label.strip()


def _comma_separated(path: Path) -> Iterator[Row]:
    reader = csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    try:
        for row in reader:
            if len(row) < 2:
                raise DataError(f"{path}, line {reader.line_num} has no comma; expected a label and a text")
            yield reader.line_num, " ".join(field.strip() for field in row[1:]), row[0].strip()
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; quote fields with double quotes") from None


def _prepare(config: LabelledData, output: Path) -> None:
    files = config.files()
    with building(output) as folder:
        train, held_out = files["train"][0], _held_out(config, files)
        classes = _classes(train, (label for _, _, label in _rows(train, config.header)))
        tokenizer = config.tokenizer or BPEConfig()
        texts = (text for path in _seen(config, files) for text, _ in read_labelled(path, config.header))
        builder = Builder(folder, config.kind, config.settings(), tokenizer.train(texts))
        counts: dict[str, dict[str, int]] = {}
        for split in ("train", "validation", "test"):
            path = files[split][0] if split in files else train
            if split in files or (split == "validation" and not config.validation):
                rows = _rows(path, config.header)
                if held_out is not None and split != "test":
                    wanted = split == "validation"
                    rows = (row for index, row in enumerate(rows) if bool(held_out[index]) == wanted)
                counts[split] = _write_split(builder, split, path, rows, classes)
        builder.finish(hash_sources(files), counts, classes=list(classes))


def _seen(config: LabelledData, files: Mapping[str, list[Path]]) -> list[Path]:
    """The files that the tokenizer is learned from."""
    tokenizer = config.tokenizer or BPEConfig()
    return (
        [path for paths in files.values() for path in paths] if tokenizer.sees_every_split else files["train"]
    )


def _held_out(config: LabelledData, files: Mapping[str, list[Path]]) -> Indices | None:
    """Which training examples are kept for validation, where no file is: 1 for those, in the file's order."""
    if config.validation is not None:
        return None
    n = sum(1 for _ in _rows(files["train"][0], config.header))
    if n < 2:
        raise DataError(f"{files['train'][0]} has {n} example; one cannot be kept for validation")
    kept = np.zeros(n, dtype=np.int64)
    kept[Permutation(n, 0).all()[: max(1, int(n * config.validation_fraction))]] = 1
    return kept


def _classes(path: Path, labels: Iterator[str]) -> dict[str, int]:
    """Return the number of each label."""
    found = set()
    for label in labels:
        found.add(label)
        if len(found) > MOST_CLASSES:
            raise DataError(
                f"{path} has more than {MOST_CLASSES} labels; are text and label in their places?"
            )
    if len(found) < 2:
        raise DataError(f"{path} has {len(found)} label; give examples of at least two classes")
    numbers = all(label.removeprefix("-").isdecimal() for label in found)
    ordered = sorted(found, key=lambda label: (int(label) if numbers else 0, label))
    return {label: index for index, label in enumerate(ordered)}


def _write_split(
    builder: Builder, split: str, path: Path, rows: Iterator[Row], classes: Mapping[str, int]
) -> dict[str, int]:
    total = n_examples = 0
    with (
        builder.tokens(f"{split}.tokens") as tokens,
        builder.offsets(f"{split}.offsets") as offsets,
        builder.offsets(f"{split}.labels") as labels,
    ):
        offsets.write([0])
        while some := list(islice(rows, EXAMPLES_AT_ONCE)):
            labels.write([_class(path, line, label, classes) for line, _, label in some])
            total = _write_texts(builder, path, [text for _, text, _ in some], tokens, offsets, total)
            n_examples += len(some)
    return {"examples": n_examples, "tokens": total}


def _class(path: Path, line: int, label: str, classes: Mapping[str, int]) -> int:
    if label not in classes:
        near = nearest(label, classes) or f"; those are {', '.join(list(classes)[:8])}"
        raise DataError(f"{path}, line {line}: no training example has the label {label!r}{near}")
    return classes[label]


def _write_texts(
    builder: Builder, path: Path, texts: list[str], tokens: ArrayWriter, offsets: ArrayWriter, total: int
) -> int:
    try:
        encoded = builder.tokenizer.encode_batch(texts)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for ids in encoded:
        tokens.write(ids)
        total += len(ids)
        offsets.write([total])
    return total


class LabelledCorpus(PreparedCorpus[LabelledData]):
    """Prepared labelled text, ready to train on and to evaluate with."""

    def __init__(self, config: LabelledData, folder: Path) -> None:
        super().__init__(config, folder)
        self.classes: tuple[str, ...] = tuple(self._prepared.manifest["classes"])
        self._splits = {split: self._open(split) for split in self.splits}

    def examples(self, split: str) -> Examples:
        """Return a split's examples. DataError for one that the data does not have."""
        self.require_split(split)
        return self._splits[split]

    def stream(self, seed: int) -> LabelledStream:
        """Return the training batches as a function of the step."""
        return LabelledStream(self.examples("train"), batch_size=self.config.batch_size, seed=seed)

    def evaluation(self, split: str = "validation") -> LabelledEvaluation:
        """Return the batches that hold every example of `split` exactly once."""
        return LabelledEvaluation(self.examples(split), batch_size=self.config.batch_size)

    def text(self, split: str, index: int) -> str:
        """Return the text of an example as it is in its file, which may be longer than what a model reads."""
        return self.tokenizer.decode(self.examples(split).texts[index])

    def _open(self, split: str) -> Examples:
        tokens, offsets = self._prepared.tokens(f"{split}.tokens"), self._prepared.array(f"{split}.offsets")
        labels = self._prepared.array(f"{split}.labels", below=len(self.classes))
        fits = len(offsets) == len(labels) + 1 and offsets[0] == 0 and offsets[-1] == len(tokens)
        if not fits or not len(labels) or not np.all(offsets[:-1] <= offsets[1:]):
            raise DataError(
                f"{self.folder}/{split}.offsets.bin does not fit the tokens; prepare the data again"
            )
        tokenizer = self.tokenizer
        special = tokenizer.pad, tokenizer.bos, tokenizer.eos
        return Examples(Sentences(tokens, offsets), labels.astype(np.int64), self.config.max_length, *special)
