"""`metrics.jsonl`: the append-only truth of a run. Everything else that shows numbers is fed from it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

Value = float | int | str | None
Record = Mapping[str, Value]

VOLATILE = ("time", "perf/", "mem/")  # prefixes of the fields that depend on the machine and the moment


@runtime_checkable
class Sink(Protocol):
    """A reader of records as they are written: TensorBoard, a tracker."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Append records, one JSON object per line, flushed at once and passed on to the sinks.

    A record holds its `step`, the seconds trained so far as `time`, and named figures: `train/loss`,
    `train/nll`, `val/...`, `opt/lr`, `opt/grad_norm`, `perf/tokens_per_second`, `mem/peak_bytes`.
    """

    def __init__(self, path: Path, sinks: Sequence[Sink] = ()) -> None:
        self._file = path.open("ab", buffering=0)
        self._sinks = sinks

    def append(self, record: Record) -> None:
        """Write one record; a figure that is not finite is written as null, which JSON can hold.

        Raise OSError where the disk refuses; the file then ends as it did before.
        """
        line = json.dumps({name: _finite(value) for name, value in record.items()}, ensure_ascii=False) + "\n"
        end = os.fstat(self._file.fileno()).st_size
        rest = memoryview(line.encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            os.truncate(self._file.fileno(), end)
            raise
        for sink in self._sinks:
            sink.write(record)

    def sync(self) -> None:
        """Force the lines to the disk, so that a checkpoint is never newer than the metrics before it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close()


def read_metrics(path: Path) -> list[dict[str, Value]]:
    """Return the whole records of a metrics file; a torn last line is left out, no file gives none."""
    return [record for record, _ in _records(path)]


def rewind_metrics(path: Path, step: int) -> None:
    """Cut the file before the first record later than `step`, and before a torn line.

    Cutting only ever shortens the file, so a crash here leaves a file that can be cut again.
    """
    if not path.exists():
        return
    end = 0
    for record, record_end in _records(path):
        if _step(record) > step:
            break
        end = record_end
    os.truncate(path, end)


def reproducible(record: Record) -> dict[str, Value]:
    """Return the record without the fields that may differ between two runs with the same seed."""
    return {name: value for name, value in record.items() if not name.startswith(VOLATILE)}


class TensorBoard:
    """A sink that writes TensorBoard event files. Raise ValueError where TensorBoard is not installed."""

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "training.tensorboard is true but tensorboard is not installed; "
                "pip install tensorboard, or set it to false"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, str):
                self._writer.add_text(name, value, _step(record))
            elif value is not None and name != "step":
                self._writer.add_scalar(name, value, _step(record))

    def close(self) -> None:
        self._writer.close()


def _records(path: Path) -> Iterator[tuple[dict[str, Value], int]]:
    """Yield each whole record with the offset of its end; stop at the first line that is not one."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(record, dict) or "step" not in record:
                return
            end += len(line)
            yield record, end


def _step(record: Record) -> int:
    step = record["step"]
    return step if isinstance(step, int) else -1


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
