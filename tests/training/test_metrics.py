"""metrics.jsonl survives tearing, rewinding and a full disk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.training.metrics import (
    MetricsLog,
    Record,
    TensorBoard,
    read_metrics,
    reproducible,
    rewind_metrics,
)


def write(path: Path, steps: list[int]) -> list[Record]:
    log = MetricsLog(path)
    records: list[Record] = [
        {"step": step, "train/loss": step / 3, "sample": "Zoë\u2028\n"} for step in steps
    ]
    for record in records:
        log.append(record)
    log.close()
    return records


def test_every_record_is_on_the_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(3):
        log.append({"step": step, "train/loss": 0.1})
        assert read_metrics(tmp_path / "metrics.jsonl")[-1] == {"step": step, "train/loss": 0.1}
    log.sync()


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m")
    log.append({"step": 1, "train/loss": float("nan"), "opt/grad_norm": float("inf")})
    line = (tmp_path / "m").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 1, "train/loss": None, "opt/grad_norm": None,
    }  # fmt: skip


@given(cut=st.integers(0, 400), step=st.integers(0, 12))
def test_any_torn_file_rewinds_to_whole_records(
    tmp_path_factory: pytest.TempPathFactory, cut: int, step: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    records = write(path, [2, 4, 4, 6, 8])
    os.truncate(path, min(cut, path.stat().st_size))
    whole = path.read_bytes().count(b"\n")
    rewind_metrics(path, step)
    assert read_metrics(path) == [record for record in records[:whole] if int(str(record["step"])) <= step]
    write(path, [20])
    assert read_metrics(path)[-1]["step"] == 20


def test_rewinding_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    rewind_metrics(tmp_path / "none", 3)
    assert read_metrics(tmp_path / "none") == []


def test_time_and_machine_are_left_out_of_what_is_reproducible() -> None:
    record: Record = {
        "step": 1,
        "time": 2.0,
        "perf/tokens_per_second": 3.0,
        "mem/peak_bytes": 4,
        "val/loss": 5.0,
    }
    assert reproducible(record) == {"step": 1, "val/loss": 5.0}


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, limit_file_size: Callable[[int], None]) -> None:
    path = tmp_path / "metrics.jsonl"
    records = write(path, [1, 2])
    log = MetricsLog(path)
    limit_file_size(path.stat().st_size + 10)
    with pytest.raises(OSError, match="File too large"):
        log.append({"step": 3, "train/loss": 0.5})
    limit_file_size(-1)
    log.append({"step": 4, "train/loss": 0.5})
    assert read_metrics(path) == [*records, {"step": 4, "train/loss": 0.5}]


@pytest.fixture
def limit_file_size() -> Callable[[int], None]:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size if size >= 0 else hard, hard))


def test_tensorboard_is_fed_from_the_records(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path / "m", [TensorBoard(tmp_path / "tb", first_step=1)])
    for step in (1, 2):
        log.append({"step": step, "train/loss": step / 4, "sample": "text", "val/loss": None})
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.25), (2, 0.5)]
    assert events.Tags()["scalars"] == ["train/loss"]


def test_a_missing_tensorboard_is_a_line_of_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(
        ValueError, match="tensorboard is not installed; pip install tensorboard, or set it to false"
    ):
        TensorBoard(tmp_path, 1)
