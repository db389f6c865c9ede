"""The power fails at any operation of a save; the disk keeps any subset of what was not forced to it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.disks import (
    PowerCut,
    QuickDisk,
    RecordingDisk,
    fingerprint,
    folder_in_memory,
    materialize,
    save,
    token_of,
)
from transformer.training.checkpoint import CheckpointStore

Event = tuple[str, Path, object]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from folder_in_memory()


def record(root: Path, first_token: int = 0) -> list[Event]:
    """Record rotation, a repeated save, a replaced one, a restart; "begin"/"report" frame each save."""
    disk = RecordingDisk()
    store = CheckpointStore(root / "run", keep_last=2, file_system=disk)
    plan = [
        (1, 1, 3.0),
        (2, 2, 1.0),
        (3, 3, 2.0),
        (4, 4, 2.5),
        (4, 4, 2.5),
        (4, 5, 0.5),
        (4, 6, None),
        (5, 7, 0.7),
    ]
    for step, token, score in plan:
        if token == 7:
            store.sweep()
        claim = (first_token + step, first_token + token)
        disk.operations.append(("begin", root, claim))
        save(store, *claim, score)
        disk.operations.append(("report", root, claim))
    return disk.operations


def check(root: Path, allowed: set[tuple[int, int] | None], *, go_on: bool) -> None:
    """Whatever is visible under a final name is whole, and the newest is one of the allowed (step, token)."""
    store = CheckpointStore(root / "run", file_system=QuickDisk())
    checkpoint = store.newest()
    assert (None if checkpoint is None else (checkpoint.step, token_of(checkpoint))) in allowed
    assert checkpoint is None or checkpoint.skipped == ()
    for step in store.steps():
        store.open(step)
    if go_on:
        store.sweep()
        leftovers = [path.name for path in root.rglob(".*")]
        assert leftovers == []
        best = store.best()
        for name, named in (("latest", checkpoint), ("best", best)):
            assert named is None or json.loads((root / f"run/{name}.json").read_bytes())["step"] == named.step
        save(store, 1000, 1000)
        again = store.newest()
        assert again is not None and (again.step, token_of(again)) == (1000, 1000)


def replay(
    start: Path,
    events: list[Event],
    before: tuple[int, int] | None,
    per_prefix: int,
    dice: random.Random,
    visit: Callable[[dict[str, bytes | None], set[tuple[int, int] | None]], None],
) -> None:
    """Visit outcomes of a power cut after every prefix of the events, with the (step, token) it may leave."""
    model = PowerCut(start)
    reported, begun = before, before
    for event in events:
        kind, _, claim = event
        if kind == "begin":
            begun = claim  # type: ignore[assignment]
        elif kind == "report":
            reported = claim  # type: ignore[assignment]
        else:
            model.apply(event)
        for _ in range(per_prefix):
            visit(model.outcome(dice), {reported, begun})


def explore(tmp_path: Path, per_prefix: int) -> int:
    """Load every distinct state that a power cut can leave; return how many there were."""
    start, root = tmp_path / "start", tmp_path / "root"
    start.mkdir()
    root.mkdir()
    events = record(root)
    events = [(kind, _moved(path, root, start), _moved(extra, root, start)) for kind, path, extra in events]
    seen: set[tuple[bytes, object]] = set()

    def visit(state: dict[str, bytes | None], allowed: set[tuple[int, int] | None]) -> None:
        key = (fingerprint(state), frozenset(allowed))
        if key not in seen:
            seen.add(key)
            here = tmp_path / "state"
            materialize(state, here)
            check(here, allowed, go_on=len(seen) % 10 == 0)
            shutil.rmtree(here)

    replay(start, events, None, per_prefix, random.Random(1), visit)
    return len(seen)


def _moved(value: object, source: Path, target: Path) -> object:
    return (
        target / value.relative_to(source)
        if isinstance(value, Path) and value.is_relative_to(source)
        else value
    )


def test_a_power_cut_anywhere_leaves_the_newest_reported_checkpoint(tmp_path: Path) -> None:
    assert explore(tmp_path, per_prefix=70) >= 2000


@pytest.mark.slow
def test_a_power_cut_anywhere_five_thousand_states(tmp_path: Path) -> None:
    assert explore(tmp_path, per_prefix=250) >= 5000


@pytest.mark.parametrize("forgotten", ["fsync", "fsync_dir"])
def test_the_model_finds_a_forgotten_fsync(
    tmp_path: Path, forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof above means something only if a protocol without its fsyncs fails it."""
    monkeypatch.setattr(RecordingDisk, forgotten, getattr(QuickDisk, forgotten))
    with pytest.raises((AssertionError, ValueError)):
        explore(tmp_path, per_prefix=10)


def test_a_second_power_cut_during_recovery(tmp_path: Path) -> None:
    """Crash, start again (sweep, save), crash again."""
    root = tmp_path / "root"
    root.mkdir()
    dice = random.Random(2)
    crashes: list[tuple[dict[str, bytes | None], set[tuple[int, int] | None]]] = []
    replay(root, record(root), None, 1, dice, lambda state, allowed: crashes.append((state, allowed)))
    seconds = 0

    def visit(state: dict[str, bytes | None], allowed: set[tuple[int, int] | None]) -> None:
        nonlocal seconds
        seconds += 1
        here = tmp_path / "second"
        materialize(state, here)
        check(here, allowed, go_on=False)
        shutil.rmtree(here)

    for number, (state, allowed) in enumerate(dice.sample(crashes, 6)):
        here = tmp_path / f"first-{number}"
        materialize(state, here)
        model = PowerCut(here)  # what the first crash left is durable
        disk = RecordingDisk()
        store = CheckpointStore(here / "run", keep_last=2, file_system=disk)
        store.sweep()
        disk.operations.append(("begin", here, (9, 9)))
        save(store, 9, 9)
        reported: set[tuple[int, int] | None] = set(allowed)
        for event in disk.operations:
            if event[0] == "begin":
                reported |= {(9, 9)}
            else:
                model.apply(event)
            for _ in range(2):
                visit(model.outcome(dice), reported)
    assert seconds > 250
