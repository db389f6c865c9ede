"""Any order of saves, damages, crashes, restarts and sweeps, against a model of what must still be there."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.training.disks import MEMORY, FailingDisk, QuickDisk, save, token_of
from transformer.training.checkpoint import CheckpointError, CheckpointStore


@dataclass
class Saved:
    """What the model knows of one checkpoint. `readable`: its manifest and sizes are right, so it counts."""

    token: int
    score: float | None
    readable: bool = True
    intact: bool = True


class Rotation(RuleBasedStateMachine):
    """The store beside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.saved: dict[int, Saved] = {}
        self.token = 0

    @initialize(keep_last=st.integers(1, 3), keep_best=st.integers(0, 2))
    def begin(self, keep_last: int, keep_best: int) -> None:
        self.start(keep_last, keep_best)

    @rule(keep_last=st.integers(1, 3), keep_best=st.integers(0, 2))
    def start(self, keep_last: int, keep_best: int) -> None:
        self.keep = keep_last, keep_best
        self.store = CheckpointStore(
            self.folder, keep_last=keep_last, keep_best=keep_best, file_system=QuickDisk()
        )

    @rule(step=st.integers(0, 12), score=st.none() | st.integers(-3, 3).map(float))
    def save(self, step: int, score: float | None) -> None:
        self.token += 1
        path = save(self.store, step, self.token, score)
        self.saved[step] = Saved(self.token, score)
        assert token_of(self.store.open(path)) == self.token
        self.rotate(step)

    def rotate(self, step: int) -> None:
        last, best = self.keep
        counted = {number: it for number, it in self.saved.items() if it.readable}
        scored = sorted((it.score, -number) for number, it in counted.items() if it.score is not None)
        keep = {step, *sorted(counted)[-last:], *[-number for _, number in scored[: max(1, best)]]}
        self.saved = {number: it for number, it in self.saved.items() if number in keep or not it.readable}

    @rule(step=st.integers(0, 12), at=st.integers(0, 24), lasting=st.booleans())
    def save_on_a_failing_disk(self, step: int, at: int, lasting: bool) -> None:
        """Before the commit: nothing changes. After it: only rotation is left for next time."""
        disk = FailingDisk(at, lasting=lasting)
        store = CheckpointStore(self.folder, keep_last=100, keep_best=100, file_system=disk)
        try:
            save(store, step, self.token + 1)
        except CheckpointError:
            there = list(self.store.checkpoints.glob(f"step-{step:08d}/state.json"))
            if not (there and json.loads(there[0].read_bytes()) == {"token": self.token + 1}):
                self.store.sweep()
                return
        self.token += 1
        self.saved[step] = Saved(self.token, None)
        self.store.sweep()

    @precondition(lambda self: any(it.intact for it in self.saved.values()))
    @rule(data=st.data(), truncated=st.booleans())
    def damage(self, data: st.DataObject, truncated: bool) -> None:
        step = data.draw(st.sampled_from(sorted(step for step, it in self.saved.items() if it.intact)))
        path = self.store.checkpoints / f"step-{step:08d}" / "model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] if truncated else content[:-1] + bytes([content[-1] ^ 1]))
        self.saved[step].readable = not truncated
        self.saved[step].intact = False

    @rule(
        name=st.sampled_from(["latest.json", "best.json"]),
        content=st.sampled_from([b"", b"{", b'{"step": 3}']),
    )
    def damage_a_pointer(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    @rule()
    def sweep(self) -> None:
        (self.store.checkpoints / ".tmp-9-1-ab").mkdir(parents=True, exist_ok=True)
        self.store.sweep()
        assert not list(self.folder.rglob(".*"))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def replacement_cut_short(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.saved)))
        path = self.store.checkpoints / f"step-{step:08d}"
        path.rename(path.with_name(f".old-{step:08d}-1-ab"))
        self.newest_is_right()
        self.store.sweep()

    @invariant()
    def what_must_be_there_is_there(self) -> None:
        assert self.store.steps() == tuple(sorted(self.saved))

    @invariant()
    def newest_is_right(self) -> None:
        intact = [step for step, it in self.saved.items() if it.intact]
        if intact:
            newest = self.store.newest()
            assert newest is not None and newest.step == max(intact)
            assert token_of(newest) == self.saved[newest.step].token
        elif self.saved:
            with pytest.raises(CheckpointError, match="no checkpoint in .* can be read"):
                self.store.newest()

    @invariant()
    def best_is_right(self) -> None:
        scored = [(it.score, -step) for step, it in self.saved.items() if it.score is not None and it.intact]
        if scored:
            best = self.store.best()
            assert best is not None and (best.score, -best.step) == min(scored)
            assert token_of(best) == self.saved[best.step].token

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=20, stateful_step_count=20)


@pytest.mark.slow
class TestTenThousandSteps(Rotation.TestCase):
    settings = settings(max_examples=400, stateful_step_count=25)
