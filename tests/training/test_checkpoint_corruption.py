"""Bytes go bad on the disk: no damaged checkpoint is ever used, and an older one takes its place."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.disks import QuickDisk, folder_in_memory, save, token_of
from transformer.training.checkpoint import CheckpointStore

Damage = Callable[[Path, random.Random], None]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from folder_in_memory()


def flip_bit(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, dice: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: dice.randrange(len(data))])


def zero_page(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = dice.randrange(0, len(data), 512)
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def lengthen(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes() + dice.randbytes(dice.randrange(1, 20)))


def swap_with_sibling(path: Path, dice: random.Random) -> None:
    other = dice.choice([sibling for sibling in sorted(path.parent.iterdir()) if sibling != path])
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def take_from_older(path: Path, dice: random.Random) -> None:
    older = path.parent.parent / dice.choice(["step-00000001", "step-00000002"])
    path.write_bytes((older / path.name).read_bytes())


def remove(path: Path, dice: random.Random) -> None:
    path.unlink()


def drop_line(path: Path, dice: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[dice.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


DAMAGES: list[Damage] = [
    flip_bit, flip_bit, flip_bit, truncate, zero_page, lengthen, swap_with_sibling, take_from_older, remove,
    drop_line,
]  # fmt: skip


def count_detected(tmp_path: Path, trials: int) -> int:
    """Damage the newest checkpoint `trials` times; every time the one before it must be loaded instead."""
    store = CheckpointStore(tmp_path / "run", file_system=QuickDisk())
    for step in (1, 2, 3):
        save(store, step, step, score=float(-step))
    newest = tmp_path / "run" / "checkpoints" / "step-00000003"
    intact = tmp_path / "intact"
    shutil.copytree(newest, intact)
    originals = {path.name: path.read_bytes() for path in intact.iterdir()}
    dice = random.Random(0)
    detected = 0
    while detected < trials:
        dice.choice(DAMAGES)(newest / dice.choice(sorted(originals)), dice)
        found = {path.name: path.read_bytes() for path in newest.iterdir()}
        if found == originals:
            continue  # zeroed zeros and the like
        checkpoint = store.newest() if detected % 2 else store.best()
        assert checkpoint is not None and token_of(checkpoint) == 2
        changed = [name for name in originals if found.get(name) != originals[name]]
        assert len(checkpoint.skipped) == 1 and any(name in checkpoint.skipped[0] for name in changed)
        assert "\n" not in checkpoint.skipped[0]
        for name, data in originals.items():
            (newest / name).write_bytes(data)
        detected += 1
    assert (whole := store.newest()) is not None and token_of(whole) == 3, "undamaged, it loads"
    return detected


def test_a_thousand_damages_none_loaded(tmp_path: Path) -> None:
    assert count_detected(tmp_path, 1000) == 1000


@pytest.mark.slow
def test_two_thousand_damages_none_loaded(tmp_path: Path) -> None:
    assert count_detected(tmp_path, 2000) == 2000


def test_falling_back_past_several(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=5, file_system=QuickDisk())
    for step in range(1, 6):
        save(store, step, step)
    for step, name in ((5, "MANIFEST.json"), (4, "optimizer.safetensors"), (3, "state.json")):
        flip_bit(store.checkpoints / f"step-{step:08d}" / name, random.Random(step))
    checkpoint = store.newest()
    assert checkpoint is not None and token_of(checkpoint) == 2
    assert [name in reason for name, reason in zip(
        ("MANIFEST.json", "optimizer.safetensors", "state.json"), checkpoint.skipped, strict=True
    )] == [True] * 3  # fmt: skip
    save(store, 6, 6)
    assert store.steps() == (1, 2, 3, 4, 5, 6), "what cannot be read now is left for the disk's repair"


def test_damaged_pointers_do_not_matter(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, file_system=QuickDisk())
    save(store, 1, 1, 0.5)
    for garbage in (b"", b"{", b"[]", b'{"step": "x"}', b'{"step": {}}', b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "latest.json").write_bytes(garbage)
        (tmp_path / "best.json").write_bytes(garbage)
        newest, best = store.newest(), store.best()
        assert newest is not None and best is not None and token_of(newest) == token_of(best) == 1
