"""Running text: the same tokens in pieces as in one, windows that cover, bytes that are counted."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.data.corpora import ENVIRONMENT, sentences
from transformer.data import (
    BPEConfig,
    ByteConfig,
    CharacterConfig,
    DataError,
    TextBatch,
    TextData,
    TextEvaluation,
    TextStream,
    prepare_text,
)
from transformer.data.text import whole_lines

SHAKESPEARE = Path(__file__).parents[2] / "data" / "tinyshakespeare"


def windows(n_tokens: int, context: int, batch_size: int, seed: int = 0) -> TextStream:
    return TextStream(np.arange(n_tokens), context=context, batch_size=batch_size, seed=seed)


def test_tiny_shakespeare_is_split_as_published(tmp_path: Path) -> None:
    corpus = TextData(path=str(SHAKESPEARE), cache=str(tmp_path)).load()
    size = {split: counts["characters"] for split, counts in corpus.counts.items()}
    assert size == {"train": 1_003_854, "validation": 111_540}
    assert corpus.tokenizer.vocab_size == 65 + 3
    text = (SHAKESPEARE / "input.txt").read_text(encoding="utf-8")
    assert corpus.tokenizer.decode(corpus.tokens("train")[:500].tolist()) == text[:500]
    assert corpus.tokenizer.decode(corpus.tokens("validation").tolist()) == text[1_003_854:]
    evaluation = corpus.evaluation()
    assert (evaluation.n_tokens, evaluation.n_bytes) == (111_539, 111_539)


@pytest.mark.parametrize("config", [BPEConfig(vocab_size=400), ByteConfig(), CharacterConfig()])
def test_text_in_pieces_has_the_tokens_of_the_whole(config: Any, tmp_path: Path) -> None:
    """Bytes, characters and tokens are those of the text as it stands, whatever blocks it was read in."""
    parts = [["\n", "\n\n", " \n ", "\n\t\n"][i % 4] + line for i, line in enumerate(sentences(5000, 0))]
    text = "".join(parts)
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    corpus = TextData(path=str(path), tokenizer=config, validation_fraction=0.25).load()
    cut = int(len(text) * 0.75)
    for split, piece in (("train", text[:cut]), ("validation", text[cut:])):
        assert corpus.tokens(split).tolist() == corpus.tokenizer.encode(piece)
        counts = corpus.counts[split]
        assert (counts["characters"], counts["bytes"]) == (len(piece), len(piece.encode()))


@given(blocks=st.lists(st.text(alphabet="ab \n\t\r\u2028\x1c", max_size=30)))
@example(blocks=["x" * 700_000, "x" * 700_000, "\n", "y"])
def test_cuts_keep_the_text_and_fall_between_lines(blocks: list[str]) -> None:
    pieces = list(whole_lines(blocks))
    assert "".join(pieces) == "".join(blocks) and all(pieces)
    for piece, following in zip(pieces, pieces[1:], strict=False):  # noqa: RUF007
        long = len(piece) > 1 << 20
        assert long or (piece[-1] == "\n" and not piece[-2].isspace() and not following[0].isspace())


def test_files_of_a_folder_are_documents(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("two ü")
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    (folder / "c.txt").write_text("last")
    (folder / "notes.md").write_text("not text for us")
    config = TextData(path=str(folder), tokenizer=ByteConfig(), validation_fraction=0.5, context=2)
    corpus = config.load()
    t = corpus.tokenizer
    assert corpus.tokens("train").tolist() == [*t.encode("one"), t.eos, *t.encode("two")]
    assert corpus.tokens("validation").tolist() == [*t.encode(" ü"), t.eos, *t.encode("last")]
    assert corpus.counts["validation"] == {"tokens": 8, "characters": 6, "bytes": 7}
    assert corpus.evaluation().n_bytes == 6  # all but the first token's


def test_validation_and_test_may_be_files_of_their_own(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} text")
    config = TextData(
        path=str(tmp_path / "train.txt"),
        validation=str(tmp_path / "valid.txt"),
        test=str(tmp_path / "test.txt"),
        tokenizer=CharacterConfig(),
        context=4,
    )
    corpus = config.load()
    assert set(corpus.splits) == {"train", "validation", "test"}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        assert corpus.tokenizer.decode(corpus.tokens(split).tolist()) == f"the {name} text"


@settings(max_examples=30)
@given(
    n_tokens=st.integers(6, 400),
    context=st.integers(1, 5),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_an_epoch_visits_each_window_once(n_tokens: int, context: int, batch_size: int, seed: int) -> None:
    stream = windows(n_tokens, context, batch_size, seed)
    n = stream.windows_per_epoch
    steps = -(-3 * n // batch_size)
    rows = torch.cat([stream.batch(step).tokens for step in range(steps)])
    assert torch.equal(rows, rows[:, :1] + torch.arange(context + 1)) and int(rows.max()) < n_tokens
    for epoch in range(3):
        labels = rows[epoch * n : (epoch + 1) * n, 1:].flatten().tolist()
        assert len(set(labels)) == len(labels) > n_tokens - 1 - 2 * context
        assert max(labels) - min(labels) + 1 == len(labels), "the windows are contiguous"


@given(seed=st.integers(0, 2**62), steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=4))
def test_a_batch_depends_on_seed_and_step_alone(seed: int, steps: list[int]) -> None:
    stream = windows(5000, 16, 8, seed)
    forward = [stream.batch(step).tokens for step in steps]
    backward = [windows(5000, 16, 8, seed).batch(step).tokens for step in reversed(steps)]
    assert all(map(torch.equal, forward, reversed(backward)))
    assert not torch.equal(forward[0], windows(5000, 16, 8, seed + 1).batch(steps[0]).tokens)


def test_windows_shift_from_epoch_to_epoch() -> None:
    stream = windows(1000, 10, 1)
    first = [{int(stream.batch(e * 99 + i).tokens[0, 0]) % 10 for i in range(99)} for e in range(8)]
    assert all(len(residues) == 1 for residues in first) and len(set.union(*first)) >= 4


@given(step=st.integers(0, 10**6), parts=st.integers(1, 40))
def test_parts_hold_each_row_once(step: int, parts: int) -> None:
    stream = windows(3000, 7, 24)
    pieces = [stream.batch(step, part, parts).tokens for part in range(parts)]
    assert torch.equal(torch.cat(pieces), stream.batch(step).tokens)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def labels_of(batches: Iterator[TextBatch]) -> list[int]:
    return [token for batch in batches for token in batch.tokens[:, 1:].flatten().tolist()]


@given(n_tokens=st.integers(2, 300), context=st.integers(1, 40), batch_size=st.integers(1, 9))
def test_evaluation_predicts_every_token_but_the_first_once(
    n_tokens: int, context: int, batch_size: int
) -> None:
    evaluation = TextEvaluation(np.arange(n_tokens), context=context, batch_size=batch_size, n_bytes=1)
    batches = list(evaluation.batches())
    assert labels_of(iter(batches)) == list(range(1, n_tokens))
    assert len(batches) == len(evaluation) and evaluation.n_tokens == n_tokens - 1
    assert all(
        batch.tokens.shape[0] <= batch_size and batch.tokens.shape[1] <= context + 1 for batch in batches
    )


def write(path: Path, content: bytes) -> TextData:
    path.write_bytes(content)
    return TextData(path=str(path), tokenizer=ByteConfig(), context=8, batch_size=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"input\.txt is empty"),
        (b"good\nbad \xff\n", r"input\.txt, line 2: byte 0xff is not UTF-8"),
        (
            b"short",
            r"the training text has 4 tokens, but a window of data.context 8 needs 9; lower data.context",
        ),
    ],
)
def test_text_that_cannot_be_used_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "input.txt", content).load().stream(0)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = write(tmp_path / "input.txt", b"a text of some length")
    with pytest.raises(DataError, match=r"no file .*imput\.txt\[\.gz\]; the nearest is 'input\.txt'"):
        replace(config, path=str(tmp_path / "imput.txt")).load()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder has no \.txt or \.gz file"):
        replace(config, path=str(tmp_path / "folder")).load()
    with pytest.raises(DataError, match=r"validation_fraction 1\.5 must lie between 0 and 1"):
        TextData(validation_fraction=1.5)
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation"):
        config.load().tokens("dev")
    with pytest.raises(DataError, match="1 token has nothing to predict"):
        replace(config, validation_fraction=0.04).load().evaluation()
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        windows(100, 0, 4)
    with pytest.raises(ValueError, match="got step -1, part 0/1"):
        windows(100, 4, 4).batch(-1)


def test_preparing_asks_for_a_new_folder(tmp_path: Path) -> None:
    config = write(tmp_path / "input.txt", b"a text of some length")
    assert prepare_text(config, tmp_path / "out").splits == ("train", "validation")
    with pytest.raises(DataError, match="out already exists and is not empty"):
        prepare_text(config, tmp_path / "out")


MEASURE = """
import resource, sys
from transformer.data import *
kinds = {"byte": ByteConfig(), "bpe": BPEConfig(vocab_size=400), "character": CharacterConfig()}
peaks = []
for name in sys.argv[2:]:
    TextData(path=name, tokenizer=kinds[sys.argv[1]]).load().stream(0).batch(0)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def growth(kind: str, tmp_path: Path, sizes: tuple[int, int]) -> int:
    """Return by how many KiB the peak memory of preparing and checking grows from one size to the other."""
    block = ("\n".join(sentences(2000, 1)) + "\n").encode()
    paths = [tmp_path / f"{size}.txt" for size in sizes]
    for path, size in zip(paths, sizes, strict=True):
        with path.open("wb") as file:
            for _ in range(size // len(block)):
                file.write(block)
    command = [sys.executable, "-c", MEASURE, kind, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return int(done.stdout)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    assert growth("byte", tmp_path, (3_000_000, 13_000_000)) < 6_000  # KiB, for 10 MB more text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte", "bpe", "character"])
def test_memory_is_the_same_for_200_megabytes(kind: str, tmp_path: Path) -> None:
    assert growth(kind, tmp_path, (40_000_000, 200_000_000)) < 48_000  # KiB, for 160 MB more
