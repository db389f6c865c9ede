r"""Reading: lines end with \n alone, and what is broken is named by file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformer.data import DataError
from transformer.data.files import (
    BLOCK_BYTES,
    MAX_LINE,
    find_file,
    read_blocks,
    read_lines,
    write_atomically,
)


@given(text=st.text(min_size=1), repeat=st.sampled_from([1, 5000]), zipped=st.booleans())
@example(text="a\x0b\x0c\x1c\x85\u2028\u2029\r b\n", repeat=1, zipped=False)
@example(text="é😀", repeat=BLOCK_BYTES, zipped=False)  # characters across the borders of blocks
def test_lines_end_with_a_newline_alone(
    text: str, repeat: int, zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text *= repeat
    path = tmp_path_factory.getbasetemp() / ("lines.txt.gz" if zipped else "lines.txt")
    path.write_bytes(gzip.compress(text.encode(), 1) if zipped else text.encode())
    expected = text.split("\n")
    assert list(read_lines(path)) == (expected[:-1] if expected[-1] == "" else expected)
    assert "".join(read_blocks(path)) == text


@pytest.mark.parametrize("before", [0, 7, 100_000])
@pytest.mark.parametrize(
    ("broken", "byte"), [(b"ok \xff\n", "ff"), (b"\xc3(", "c3"), (b"\xed\xa0\x80", "ed"), (b"\xe4\xb8", "e4")]
)
def test_bad_utf8_is_named_by_line(before: int, broken: bytes, byte: str, tmp_path: Path) -> None:
    path = tmp_path / "train.de"
    path.write_bytes("ä line\n".encode() * before + broken)
    with pytest.raises(
        DataError, match=rf"train\.de, line {before + 1}: byte 0x{byte} is not UTF-8; convert"
    ):
        list(read_lines(path))


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"line {i * i}\n" for i in range(50_000)).encode())
    path = tmp_path / "train.de.gz"
    for content in (whole[: len(whole) // 2], b"not gzip at all", whole[:5000] + b"\x00" * 50 + whole[5050:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train\.de\.gz: the gzip data is damaged after \d+ bytes"):
            list(read_blocks(path))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    with pytest.raises(DataError, match=rf"{name} is empty"):
        list(read_blocks(path))


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.de"
    path.write_text("short\n" + "x" * (MAX_LINE + BLOCK_BYTES))
    with pytest.raises(DataError, match=r"train\.de, line 2 is longer than 1,000,000 characters"):
        list(read_lines(path))


def test_files_are_found_or_the_nearest_named(tmp_path: Path) -> None:
    (tmp_path / "val.de.gz").touch()
    assert find_file(tmp_path / "val.de").name == "val.de.gz"
    with pytest.raises(DataError, match=r"no file .*valid\.de\[\.gz\]; the nearest is 'val\.de\.gz'"):
        find_file(tmp_path / "valid.de")
    (tmp_path / "val.de").touch()
    with pytest.raises(DataError, match=r"val\.de and val\.de\.gz both exist; keep the one that is meant"):
        find_file(tmp_path / "val.de")
    with pytest.raises(DataError, match="there is no folder"):
        find_file(tmp_path / "none" / "val.de")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
