"""Parallel data: refusals before training, and batches that are a function of (seed, step)."""

from __future__ import annotations

import gzip
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpora import write_parallel
from transformer.data import (
    BPEConfig,
    ByteConfig,
    CharacterConfig,
    DataError,
    PairBatch,
    ParallelCorpus,
    ParallelData,
    prepare_parallel,
)
from transformer.data.pairs import cut_by_tokens

MULTI30K = Path(__file__).parents[2] / "data" / "multi30k"
SMALL = ParallelData(tokenizer=BPEConfig(vocab_size=300), batch_tokens=400)
Example = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ParallelCorpus:
    folder = write_parallel(tmp_path_factory.mktemp("raw") / "corpus")
    return replace(SMALL, path=str(folder)).load()


def examples(batch: PairBatch) -> list[Example]:
    """The real tokens of each row, padding checked to be nothing else."""
    sides = []
    for tokens, mask in ((batch.source, batch.source_mask), (batch.target, batch.target_mask)):
        assert torch.equal(mask, mask.cumprod(1).bool()) and not tokens[~mask].any()
        sides.append([tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)])
    return list(zip(*sides, strict=True))


def expected(corpus: ParallelCorpus, split: str) -> Counter[Example]:
    t = corpus.tokenizer
    return Counter(
        ((*t.encode(source), t.eos), (t.bos, *t.encode(target), t.eos))
        for source, target in corpus.sentences(split)
    )


def same(one: PairBatch, other: PairBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_the_texts_are_those_of_the_files(corpus: ParallelCorpus, tmp_path: Path) -> None:
    folder = write_parallel(tmp_path / "again")
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test_2016_flickr")):
        texts = [
            (folder / f"{name}.{lang}").read_text(encoding="utf-8").split("\n")[:-1] for lang in ("de", "en")
        ]
        assert corpus.sentences(split) == list(zip(*texts, strict=True))
    assert corpus.splits == ("train", "validation", "test") or set(corpus.splits) == {
        "train",
        "validation",
        "test",
    }


def test_an_epoch_holds_each_example_once(corpus: ParallelCorpus) -> None:
    stream = corpus.stream(seed=3)
    n = stream.batches_per_epoch
    wanted = expected(corpus, "train")
    epochs = [[stream.batch(step) for step in range(e * n, (e + 1) * n)] for e in range(3)]
    for batches in epochs:
        assert Counter(example for batch in batches for example in examples(batch)) == wanted
    assert not same(epochs[0][0], epochs[1][0]) and not same(epochs[1][0], epochs[2][0])
    members = [{frozenset(examples(batch)) for batch in batches} for batches in epochs]
    assert members[0] != members[1], "pairs of equal lengths change batches"


@settings(max_examples=30)
@given(seed=st.integers(0, 2**62), steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=4))
def test_a_batch_depends_on_seed_and_step_alone(corpus: ParallelCorpus, seed: int, steps: list[int]) -> None:
    stream = corpus.stream(seed)
    forward = [stream.batch(step) for step in steps]
    backward = [corpus.stream(seed).batch(step) for step in reversed(steps)]
    assert all(map(same, forward, reversed(backward)))
    assert any(not same(stream.batch(step), corpus.stream(seed + 1).batch(step)) for step in range(4))


@given(step=st.integers(0, 500), parts=st.integers(1, 40))
def test_parts_hold_each_row_once(corpus: ParallelCorpus, step: int, parts: int) -> None:
    stream = corpus.stream(seed=0)
    whole = examples(stream.batch(step))
    pieces = [examples(stream.batch(step, part, parts)) for part in range(parts)]
    assert [example for piece in pieces for example in piece] == whole
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1


def test_batches_fill_their_budget(corpus: ParallelCorpus) -> None:
    stream = corpus.stream(seed=0)
    sizes = []
    for step in range(stream.batches_per_epoch):
        batch = stream.batch(step)
        sizes.append(batch.source.numel() + batch.target.numel())
    assert max(sizes) <= SMALL.batch_tokens
    assert np.mean(sizes) > 0.85 * SMALL.batch_tokens


@given(
    widths=st.lists(st.tuples(st.integers(2, 30), st.integers(3, 30)), min_size=1, max_size=80).map(sorted),
    budget=st.integers(1, 300),
)
def test_cuts_are_the_longest_that_fit(widths: list[tuple[int, int]], budget: int) -> None:
    source, target = np.array(widths).T
    limits = cut_by_tokens(source, target, budget).tolist()

    def cost(first: int, last: int) -> int:
        return int((last - first) * (source[first:last].max() + target[first:last].max()))

    assert limits[0] == 0 and limits[-1] == len(widths)
    for first, last in pairwise(limits):
        assert last > first and (last == first + 1 or cost(first, last) <= budget)
        assert last == len(widths) or cost(first, last + 1) > budget


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_evaluation_covers_a_split_once(corpus: ParallelCorpus, split: str) -> None:
    batches = list(corpus.evaluation(split).batches())
    assert len(batches) == len(corpus.evaluation(split))
    rows = [example for batch in batches for example in examples(batch)]
    assert Counter(rows) == expected(corpus, split)
    lengths = [len(source) for source, _ in rows]
    assert lengths == sorted(lengths)


def test_long_pairs_are_left_out_of_training_only(corpus: ParallelCorpus) -> None:
    config = replace(SMALL, path=str(corpus.folder), max_length=20)
    short = ParallelCorpus(config, corpus.folder)
    stream = short.stream(seed=0)
    kept = [ex for step in range(stream.batches_per_epoch) for ex in examples(stream.batch(step))]
    assert max(len(side) for example in kept for side in example) <= 20
    assert stream.n_skipped == 500 - len(kept) > 0
    assert sum(len(b.source) for b in short.evaluation().batches()) == 60


def test_a_prepared_folder_serves_both_directions(corpus: ParallelCorpus) -> None:
    config = replace(SMALL, path=str(corpus.folder), source_language="en", target_language="de")
    assert config.load().sentences("test") == [(en, de) for de, en in corpus.sentences("test")]


def test_the_cache_is_used_again_until_something_changes(tmp_path: Path) -> None:
    folder = write_parallel(tmp_path / "corpus")
    config = replace(SMALL, path=str(folder))
    first = config.load()
    assert first.folder.parent == tmp_path / ".prepared"
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    second = replace(config, batch_tokens=900, max_length=50).load()
    assert second.folder == first.folder and (second.folder / "manifest.json").stat().st_mtime_ns == stamp
    assert replace(config, tokenizer=ByteConfig()).load().folder != first.folder
    with (folder / "train.de").open("a", encoding="utf-8") as de, (folder / "train.en").open("a") as en:
        de.write("neu\n")
        en.write("new\n")
    third = replace(config, cache=str(tmp_path / "elsewhere")).load()
    assert third.folder.parent == tmp_path / "elsewhere" and third.counts["train"]["pairs"] == 501
    assert third.folder.name != first.folder.name


def test_character_tokenizers_see_every_split(tmp_path: Path) -> None:
    folder = write_parallel(tmp_path / "corpus")
    with (
        (folder / "test_2016_flickr.de").open("a", encoding="utf-8") as de,
        (folder / "test_2016_flickr.en").open("a") as en,
    ):
        de.write("Ω\n")
        en.write("omega\n")
    corpus = replace(SMALL, path=str(folder), tokenizer=CharacterConfig()).load()
    assert corpus.sentences("test")[-1] == ("Ω", "omega")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "train.de",
            " 17.\n",
            " 17.\n\n",
            r"train\.de, line 19 is empty; fill it in or set data.empty_lines: skip",
        ),
        ("train.en", " 499.\n", " 499.", None),
        ("train.en", " 17.\n", " 17. ", r"train\.de has 500 lines but .*train\.en has 499; line i of one"),
        ("val.en", " 3.\n", " 3.\nmore\n", r"val\.de has 60 lines but .*val\.en has 61; line i of one"),
        ("val.de", " 5.\n", " 5.\r\n", r"val\.de, line 6 ends with CR LF; convert the file to \\n line ends"),
    ],
)
def test_files_that_do_not_match_are_refused(
    file: str, old: str, new: str, message: str | None, tmp_path: Path
) -> None:
    folder = write_parallel(tmp_path / "corpus")
    change(folder / file, old, new)
    config = replace(SMALL, path=str(folder))
    if message is None:
        assert config.load().counts["train"]["pairs"] == 500
        return
    with pytest.raises(DataError, match=message):
        config.load()
    assert not list((tmp_path / ".prepared").iterdir()), "nothing is left behind"


def test_bad_bytes_and_empty_files_are_refused(tmp_path: Path) -> None:
    folder = write_parallel(tmp_path / "corpus")
    config = replace(SMALL, path=str(folder))
    lines = (folder / "val.en").read_bytes().split(b"\n")
    (folder / "val.en").write_bytes(b"\n".join([*lines[:9], b"\xe4\n", *lines[9:]]))
    with pytest.raises(DataError, match=r"val\.en, line 10: byte 0xe4 is not UTF-8"):
        config.load()
    (folder / "train.en").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.en is empty"):
        config.load()


def test_empty_lines_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    folder = write_parallel(tmp_path / "corpus")
    text = [(folder / f"train.{lang}").read_text(encoding="utf-8").split("\n")[:-1] for lang in ("de", "en")]
    text[0][7] = text[1][7] = text[0][100] = ""
    text[1][200] = " \t"
    for lang, lines in zip(("de", "en"), text, strict=True):
        (folder / f"train.{lang}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = replace(SMALL, path=str(folder), empty_lines="skip").load()
    assert (corpus.counts["train"]["pairs"], corpus.counts["train"]["skipped"]) == (497, 3)
    wanted = [pair for i, pair in enumerate(zip(*text, strict=True)) if i not in (7, 100, 200)]
    assert corpus.sentences("train") == wanted
    for lang in ("de", "en"):
        (folder / f"val.{lang}").write_text("\n" * 5000)
    with pytest.raises(DataError, match="hold no pair without an empty side"):
        replace(SMALL, path=str(folder), empty_lines="skip").load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "corpsu"}, "'.*corpsu' is not a folder; the nearest is 'corpus'"),
        ({"validation": "valid"}, r"no file .*valid\.de\[\.gz\]; the nearest is 'val\.de'"),
        ({"target_language": "fr"}, r"no file .*train\.fr"),
        ({"max_length": 3}, "no training pair has at most 3 tokens a side; raise data.max_length"),
        (
            {"batch_tokens": 40},
            r"batch_tokens 40 cannot hold the widest pair of \d+ tokens; raise it to at least",
        ),
        ({"tokenizer": BPEConfig(path="no.json")}, r"no file no\.json"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_parallel(tmp_path / "corpus")
    path = str(tmp_path / settings.get("path", folder.name))
    with pytest.raises(DataError, match=message) as caught:
        replace(SMALL, **{**settings, "path": path}).load().stream(0)
    assert "\n" not in str(caught.value)


def test_impossible_arguments_are_refused(corpus: ParallelCorpus) -> None:
    with pytest.raises(DataError, match="both 'de'; give two languages"):
        ParallelData(target_language="de")
    with pytest.raises(DataError, match=r"'\.\./x' is no language code"):
        ParallelData(source_language="../x")
    with pytest.raises(ValueError, match="got step 3, part 2/2"):
        corpus.stream(0).batch(3, 2, 2)
    with pytest.raises(DataError, match="no split 'dev'; it has test, train, validation"):
        corpus.evaluation("dev")


def test_preparing_asks_for_a_new_folder(tmp_path: Path) -> None:
    config = replace(SMALL, path=str(write_parallel(tmp_path / "corpus")), test=None)
    output = tmp_path / "prepared"
    output.mkdir()
    assert prepare_parallel(config, output).splits == ("train", "validation")
    with pytest.raises(DataError, match="prepared already exists and is not empty; give a new folder"):
        prepare_parallel(config, output)
    assert replace(config, path=str(output)).load().folder == output


def test_multi30k_is_whole_and_quick(tmp_path: Path) -> None:
    config = ParallelData(path=str(MULTI30K), cache=str(tmp_path))
    start = time.process_time()
    corpus = config.load()
    prepared = time.process_time()
    corpus = config.load()
    loaded = time.process_time()
    assert prepared - start < 20 and loaded - prepared < 1  # processor seconds, of both cores together
    assert {s: c["pairs"] for s, c in corpus.counts.items()} == {
        "train": 29000,
        "validation": 1014,
        "test": 1000,
    }
    assert corpus.tokenizer.vocab_size == 8000
    with gzip.open(MULTI30K / "test_2016_flickr.en.gz", "rt", encoding="utf-8", newline="\n") as file:
        assert [target for _, target in corpus.sentences("test")] == file.read().split("\n")[:-1]
    stream = corpus.stream(seed=0)
    stream.batch(0)
    start = time.process_time()
    rows = sum(len(stream.batch(step).source) for step in range(stream.batches_per_epoch))
    assert rows == 29000
    assert (time.process_time() - start) / stream.batches_per_epoch < 0.002
