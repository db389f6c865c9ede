"""Prepared folders: whatever is changed in one is found, and two processes may make the same one."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.corpora import ENVIRONMENT, write_parallel
from transformer.data import BPEConfig, ByteConfig, DataError, ParallelData, TextData
from transformer.data import arrays as arrays_module
from transformer.data.arrays import ArrayInfo, ArrayWriter, open_array, token_dtype
from transformer.data.prepared import MANIFEST, canonical, open_prepared

CONFIG = ParallelData(tokenizer=BPEConfig(vocab_size=280))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mutations")
    raw = write_parallel(root / "raw", {"train": 30, "val": 5, "test_2016_flickr": 5})
    return replace(CONFIG, path=str(raw)).load().folder


def test_no_change_of_a_file_is_silent(prepared: Path, tmp_path: Path) -> None:
    """300 mutations: a flipped bit, a truncation, bytes appended, a file emptied, replaced or lost."""
    folder, random_ = tmp_path / "folder", random.Random(0)
    shutil.copytree(prepared, folder)
    config = replace(CONFIG, path=str(folder))
    config.load()
    files = sorted(path for path in folder.iterdir())
    for number in range(300):
        path = random_.choice(files)
        content = path.read_bytes()
        match number % 6:
            case 0 | 1:
                at = random_.randrange(len(content))
                flipped = content[at] ^ (1 << random_.randrange(8))
                path.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
            case 2:
                path.write_bytes(content[: random_.randrange(len(content))])
            case 3:
                path.write_bytes(content + random_.randbytes(random_.randint(1, 64)))
            case 4:
                path.write_bytes(random_.randbytes(len(content)))
            case 5:
                path.unlink()
        with pytest.raises(DataError) as caught:
            config.load()
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
        assert path.name in str(caught.value) or path.name == MANIFEST
        path.write_bytes(content)
    config.load()


def resealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it a matching hash again."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["sha256"]
    change(manifest)
    digest = hashlib.sha256(canonical(manifest)).hexdigest()
    (folder / MANIFEST).write_bytes(canonical({**manifest, "sha256": digest}))


def rewrite(folder: Path, name: str, values: list[int], dtype: Any) -> None:
    """Replace an array by another whose hash the manifest states correctly."""
    (folder / f"{name}.bin").unlink()
    with ArrayWriter(folder / f"{name}.bin", dtype) as writer:
        writer.write(values)
    info = {"dtype": dtype, "length": writer.info.length, "sha256": list(writer.info.sha256)}
    resealed(folder, lambda manifest: manifest["arrays"].update({name: info}))


@pytest.mark.parametrize(
    ("name", "values", "dtype", "message"),
    [
        (
            "train.de.tokens",
            [5, 6, 280, 7],
            "<u2",
            r"train\.de\.tokens\.bin, offset 4: token 280 is outside the voc",
        ),
        ("train.de.offsets", [0, 4], "<u8", r"train\.de\.offsets\.bin does not fit the tokens"),
        ("train.de.offsets", [], "<u8", r"train\.de\.offsets\.bin does not fit the tokens"),
        ("train.de.offsets", [0, 10**12, 3], "<u8", r"train\.de\.offsets\.bin does not fit the tokens"),
    ],
)
def test_arrays_that_make_no_sense_are_refused(
    name: str, values: list[int], dtype: str, message: str, prepared: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "folder")
    rewrite(folder, name, values, dtype)
    with pytest.raises(DataError, match=message):
        replace(CONFIG, path=str(folder)).load()


def test_sides_of_unequal_length_are_refused(prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "folder")
    rewrite(folder, "train.de.tokens", [5, 6], "<u2")
    rewrite(folder, "train.de.offsets", [0, 1, 2], "<u8")
    with pytest.raises(DataError, match="train has 2 source but 30 target sentences"):
        replace(CONFIG, path=str(folder)).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "is not of format 1, the one this version reads"),
        (
            lambda m: m["arrays"]["train.de.tokens"].update(dtype="O"),
            "has dtype 'O'; expected one of <u2, <u4, <u8",
        ),
        (
            lambda m: m["arrays"].pop("val.de.tokens", m["arrays"].pop("train.de.tokens")),
            "has no 'train.de.tokens'",
        ),
        (lambda m: m["counts"].update({"../../etc": {}}), "has no '../../etc.de.tokens'"),
        (
            lambda m: (m["counts"].update({"../x": {}}), m["arrays"].update({"../x.de.tokens": {}})),
            "'../x.de.tokens' is not the name of an array",
        ),
    ],
)
def test_manifests_that_make_no_sense_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, prepared: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "folder")
    resealed(folder, change)
    with pytest.raises(DataError, match=message):
        replace(CONFIG, path=str(folder)).load()


def test_other_settings_than_prepared_are_refused(prepared: Path) -> None:
    config = replace(CONFIG, path=str(prepared))
    with pytest.raises(
        DataError, match=r'prepared with tokenizer .*280.*says \{"kind": "byte"\}; set data.tokenizer'
    ):
        replace(config, tokenizer=ByteConfig()).load()
    with pytest.raises(DataError, match=r'prepared with languages \["de", "en"\].*says \["en", "fr"\]'):
        replace(config, source_language="fr").load()
    with pytest.raises(DataError, match="holds parallel data, but data.kind is 'text'; set it to match"):
        TextData(path=str(prepared)).load()
    with pytest.raises(DataError, match=r"is no prepared data set: it has no manifest\.json"):
        open_prepared(prepared.parent, "text")


def test_damage_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "HASH_BLOCK", 64)
    path = tmp_path / "a.bin"
    with ArrayWriter(path, "<u4") as writer:
        writer.write(list(range(50)))
    assert len(writer.info.sha256) == 4 and open_array(path, writer.info).tolist() == list(range(50))
    with pytest.raises(
        DataError, match=r"a\.bin, offset 96: token 24 is outside the vocabulary of 24; prepare"
    ):
        open_array(path, writer.info, below=24)
    content = bytearray(path.read_bytes())
    content[130] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.bin was changed in bytes 128 to 191; prepare the data again"):
        open_array(path, writer.info)
    path.write_bytes(content[:131])
    with pytest.raises(DataError, match=r"a\.bin is truncated at 131 bytes instead of 200"):
        open_array(path, writer.info)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"a\.bin is missing"):
        open_array(path, writer.info)


def test_the_smallest_dtype_that_fits_is_used() -> None:
    assert [token_dtype(size) for size in (259, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]
    assert ArrayInfo("<u2", 0, ()).length == 0


def test_processes_may_prepare_the_same_at_once(tmp_path: Path) -> None:
    raw = write_parallel(tmp_path / "raw")
    code = (
        "import sys; from transformer.data import *;"
        "c = ParallelData(path=sys.argv[1], tokenizer=BPEConfig(vocab_size=300)); sys.stdin.readline();"
        "print(c.load().folder)"
    )
    command = [sys.executable, "-c", code, str(raw)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes) and len(folders) == 1
    assert [path.name for path in (tmp_path / ".prepared").iterdir()] == [Path(folders.pop()).name]


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_parallel(tmp_path / "raw")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace(CONFIG, path=str(raw)).load()
    assert list((tmp_path / ".prepared").iterdir()) == []


def test_a_path_longer_than_any_system_knows_is_refused_in_one_line() -> None:
    with pytest.raises(
        DataError, match=r"^data.path '.*' cannot be looked at: .*; check its spelling$"
    ) as caught:
        replace(CONFIG, path="x" * 5000).load()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
