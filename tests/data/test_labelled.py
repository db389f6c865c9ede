"""Labelled text: what the files say, exactly; batches that hold every example once, as a function of the step."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from transformer.data import ByteConfig, ByteTokenizer, DataError, LabelledCorpus, LabelledData, read_labelled

TRAIN = 'sentence\tlabel\nit \'s "good"  \t1\ntabs\tstay \t0\nbad , bad\t0\nso much \u2028 fun\t1\n'
DEV = "no header here\t1\nawful\t0\n"
NEWS = '"3","Stocks, ""up""","Wall\nStreet"\n"1","World","news"\n"3","Short","a, b"\n"1","x","y"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.tsv").write_text(TRAIN, encoding="utf-8")
    with gzip.open(tmp_path / "dev.tsv.gz", "wt", encoding="utf-8") as file:
        file.write(DEV)
    (tmp_path / "train.csv").write_text(NEWS, encoding="utf-8")
    return tmp_path


def data(folder: Path, **settings: object) -> LabelledData:
    chosen = {"path": str(folder), "tokenizer": ByteConfig(), "batch_size": 2, **settings}
    return LabelledData(**chosen)  # type: ignore[arg-type]


def test_tab_separated_files_as_sst2(folder: Path) -> None:
    rows = [('it \'s "good"  ', "1"), ("tabs\tstay ", "0"), ("bad , bad", "0"), ("so much \u2028 fun", "1")]
    assert list(read_labelled(folder / "train.tsv")) == rows
    assert list(read_labelled(folder / "train.tsv", "yes")) == rows
    assert list(read_labelled(folder / "train.tsv", "no")) == [("sentence", "label"), *rows]
    corpus = data(folder).load()
    assert corpus.splits == ("train", "validation") and corpus.classes == ("0", "1")
    assert [corpus.text("train", i) for i in range(4)] == [text for text, _ in rows]
    assert corpus.examples("train").labels.tolist() == [1, 0, 0, 1]
    assert corpus.examples("validation").labels.tolist() == [1, 0], "a file without header loses no line"
    assert corpus.counts["train"]["examples"] == 4


def test_comma_separated_files_as_ag_news(folder: Path) -> None:
    corpus = data(folder, train="train.csv", validation=None, validation_fraction=0.3).load()
    assert corpus.classes == ("1", "3")
    texts = {corpus.text(split, i) for split in corpus.splits for i in range(len(corpus.examples(split)))}
    assert texts == {'Stocks, "up" Wall\nStreet', "World news", "Short a, b", "x y"}
    assert [corpus.counts[split]["examples"] for split in ("train", "validation")] == [3, 1]
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        corpus.examples("test")


def test_classes_are_ordered_as_numbers_or_words(tmp_path: Path) -> None:
    for labels, expected in ((["10", "9", "-1"], ("-1", "9", "10")), (["10", "b", "a"], ("10", "a", "b"))):
        path = tmp_path / labels[1]
        path.mkdir()
        (path / "train.tsv").write_text("".join(f"text\t{label}\n" * 2 for label in labels))
        assert data(path, validation=None, validation_fraction=0.3).load().classes == expected


def test_a_prepared_folder_is_reopened_and_checked(folder: Path) -> None:
    settings = data(folder)
    first = settings.load()
    assert settings.load().folder == first.folder
    prepared = settings.prepare(folder / "mine")
    assert isinstance(data(folder / "mine").load(), LabelledCorpus) and prepared.classes == ("0", "1")
    with pytest.raises(DataError, match='was prepared with header "auto", but the configuration says "no"'):
        data(folder / "mine", header="no").load()
    (folder / "train.tsv").write_text(TRAIN + "more\t1\n", encoding="utf-8")
    assert settings.load().folder != first.folder, "other files are prepared anew"


def many(folder: Path, n: int = 230) -> LabelledCorpus:
    rng = np.random.default_rng(0)
    lines = [f"{'x' * int(rng.integers(1, 40))}{i}\t{i % 3}\n" for i in range(n)]
    (folder / "train.tsv").write_text("".join(lines))
    return data(folder, validation=None, batch_size=16, max_length=30).load()


def test_every_example_comes_once_an_epoch_in_batches_of_like_length(tmp_path: Path) -> None:
    corpus = many(tmp_path)
    stream, examples = corpus.stream(3), corpus.examples("train")
    assert stream.batches_per_epoch == -(-len(examples) // 16)
    epochs = []
    for epoch in range(2):
        steps = range(epoch * stream.batches_per_epoch, (epoch + 1) * stream.batches_per_epoch)
        batches = [stream.batch(step) for step in steps]
        texts = [
            ByteTokenizer().decode(row[real].tolist())
            for batch in batches
            for row, real in zip(batch.tokens, batch.real, strict=True)
        ]
        epochs.append(texts)
        assert sum(len(batch.labels) for batch in batches) == len(examples)
        padding = 1 - sum(int(b.real.sum()) for b in batches) / sum(b.real.numel() for b in batches)
        assert padding < 0.12, "batches of examples in any order are a third padding"
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    whole = [corpus.text("train", i)[:28] for i in range(len(examples))]
    assert sorted(epochs[0]) == sorted(whole), "what is too long loses its end"


def test_batches_are_a_function_of_seed_and_step_and_parts_make_them_up(tmp_path: Path) -> None:
    corpus = many(tmp_path)
    first, again, other = corpus.stream(1), corpus.stream(1), corpus.stream(2)
    for step in (7, 0, 40):
        whole = first.batch(step)
        assert torch.equal(whole.tokens, again.batch(step).tokens)
        assert torch.equal(whole.labels, again.batch(step).labels)
        parts = [first.batch(step, part, 3) for part in range(3)]
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert sum(int(part.real.sum()) for part in parts) == int(whole.real.sum())
    assert not torch.equal(first.batch(0).labels, other.batch(0).labels)
    with pytest.raises(ValueError, match="expected 0 <= step and 0 <= part < parts"):
        first.batch(0, 2, 2)


def test_rows_begin_with_bos_and_end_with_eos_also_where_they_are_cut(tmp_path: Path) -> None:
    corpus = many(tmp_path)
    seen = 0
    for batch in corpus.evaluation("train").batches():
        last = batch.real.sum(1) - 1
        rows = torch.arange(len(last))
        assert (batch.tokens[:, 0] == corpus.tokenizer.bos).all()
        assert (batch.tokens[rows, last] == corpus.tokenizer.eos).all()
        assert (batch.tokens[~batch.real] == corpus.tokenizer.pad).all() and batch.tokens.shape[1] <= 30
        seen += len(rows)
    assert seen == len(corpus.examples("train"))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            "good\t1\nbad 0\n",
            "train.tsv",
            "train.tsv, line 2 has no tab; expected a text, a tab and its label",
        ),
        ("good\t1\n \t0\n", "train.tsv", "line 2 has no text"),
        ("good\t1\nbad\t\n", "train.tsv", "line 2 has no label"),
        ("good\t1\nfine\t1\n", "train.tsv", "has 1 label; give examples of at least two classes"),
        ("".join(f"a\t{i}\n" for i in range(1001)), "train.tsv", "more than 1000 labels; are text and label"),
        ('1,"a\n', "train.csv", "train.csv, line 1: unexpected end of data; quote fields"),
        ("1\n", "train.csv", "line 1 has no comma; expected a label and a text"),
        ("a\t1\n", "train.txt", "is neither .tsv nor .csv"),
        ("a\t1\n", "train.tsv", "has 1 example; one cannot be kept for validation"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, name: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        data(tmp_path, train=name, validation=None).load()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / ".prepared").glob("*"))


def test_a_label_that_training_lacks_is_named(folder: Path) -> None:
    (folder / "train2.tsv").write_text("a\tgood\nb\tbad\n")
    (folder / "dev2.tsv").write_text("a\tgood\nb\tgoood\n")
    settings = replace(data(folder), train="train2.tsv", validation="dev2.tsv")
    with pytest.raises(
        DataError, match=r"dev2.tsv, line 2: no training example has the label 'goood'.*'good'"
    ):
        settings.load()
    with pytest.raises(DataError, match=r"there is no file .*train.tvs\[.gz\]; the nearest is 'train.tsv'"):
        data(folder, train="train.tvs").load()
    with pytest.raises(DataError, match="is not a folder; give one with files of labelled text"):
        data(folder / "train.tsv").load()
