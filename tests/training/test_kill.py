"""`kill -9` at random moments: no checkpoint lost or damaged; continued runs equal uninterrupted ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.disks import QuickDisk, folder_in_memory, save
from tests.training.kill_server import Outcome, inspect
from transformer.training.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    yield from folder_in_memory()


def torture(training: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "tests.training.kill_server",
        training,
        str(folder),
        str(kills),
        str(seed),
    ]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert not outcome["failed"], done.stderr
    return outcome


def check(outcome: dict[str, Any], kills: int) -> None:
    assert (outcome["lost"], outcome["damaged"], outcome["unequal"]) == ([], [], [])
    assert outcome["kills"] == kills and outcome["finished"] >= 1


def test_two_hundred_kills(folder: Path) -> None:
    check(torture("right", folder, 200, seed=0), 200)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_kills(folder: Path) -> None:
    check(torture("right", folder, 1000, seed=1), 1000)


def test_the_harness_finds_a_resume_that_forgets_the_optimizer(folder: Path) -> None:
    assert torture("forgetful", folder, 10, seed=2)["unequal"]


def test_the_harness_finds_what_is_lost_or_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, file_system=QuickDisk())
    save(store, 1, 1)
    save(store, 2, 2)
    assert inspect(Outcome(), tmp_path, 2) == Outcome()
    assert inspect(Outcome(), tmp_path, 3).lost == (f"{tmp_path}: step 3",)
    (store.open(2).path / "model.safetensors").write_bytes(b"")
    assert "0 bytes instead of" in inspect(Outcome(), tmp_path, 1).damaged[0]
