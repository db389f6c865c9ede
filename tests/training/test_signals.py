"""Told to stop at any moment, a run saves and ends; told twice, it ends at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from tests.training.disks import QuickDisk
from tests.training.toys import ToyPairs, differing, lasting_metrics, make_trainer, probe, snapshot
from transformer.training.checkpoint import CheckpointStore
from transformer.training.config import TrainingConfig
from transformer.training.metrics import read_metrics
from transformer.training.signals import STOPPING, StopSignals

CONFIG = TrainingConfig(max_steps=20_000, log_every=5, evaluate_every=20, checkpoint_every=50)
GRACE_SECONDS = 10.0  # generous, because the tests share their cores


@pytest.fixture(scope="module", autouse=True)
def _warm_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let this process import what a first step imports, so that its children need not."""
    make_trainer(tmp_path_factory.mktemp("warm"), replace(CONFIG, max_steps=2), evaluate=probe).run()


def forked(work: Callable[[], int]) -> int:
    """Run `work` in a child process, whose exit code is what `work` returns, and return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        except SystemExit as leaving:
            code = int(str(leaving.code))
        finally:
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """Return the exit code of a child that was told to end."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"still running {GRACE_SECONDS} s after the signal")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def started(folder: Path) -> bool:
    lock = folder / "run.lock"
    return lock.exists() and lock.stat().st_size > 0


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_signals_at_random_moments_lose_nothing(tmp_path: Path, count: int) -> None:
    """Half of the signals come while the run starts, half once it is under way: those each see a step done."""
    under_way = tmp_path / "under_way"

    def run() -> int:
        data = ToyPairs(before=lambda step: under_way.touch())
        trainer = make_trainer(tmp_path / "run", CONFIG, evaluate=probe, data=data)
        trainer.store = CheckpointStore(tmp_path / "run", file_system=QuickDisk())
        return trainer.run().exit_code

    dice = random.Random(0)
    last = 0
    for n in range(count):
        number = dice.choice(STOPPING)
        under_way.unlink(missing_ok=True)
        pid = forked(run)
        until(under_way.exists if n % 2 else lambda: started(tmp_path / "run"))
        time.sleep(dice.random() * 0.03)
        os.kill(pid, number)
        assert wait(pid) == 128 + number
        newest = CheckpointStore(tmp_path / "run").newest()
        assert newest is not None and newest.step >= last
        last = newest.step
    whole = make_trainer(tmp_path / "whole", replace(CONFIG, max_steps=last), evaluate=probe)
    assert whole.run().step == last >= count // 2
    newest = CheckpointStore(tmp_path / "run").newest()
    assert newest is not None
    assert differing(newest.tensors("model"), whole.model.state_dict()) == []
    before_last = [
        [record for record in lasting_metrics(tmp_path / folder) if record["step"] < last]
        for folder in ("run", "whole")
    ]
    assert before_last[0] == before_last[1] != []


def test_a_long_evaluation_is_left_and_made_again_on_resume(tmp_path: Path) -> None:
    def slow(model: nn.Module, step: int) -> dict[str, float]:
        (tmp_path / "evaluating").touch()
        time.sleep(60)
        return probe(model, step)

    config = TrainingConfig(max_steps=6, evaluate_every=3, ema_decay=0.9)
    pid = forked(lambda: make_trainer(tmp_path / "run", config, evaluate=slow).run().exit_code)
    until((tmp_path / "evaluating").exists)
    os.kill(pid, signal.SIGTERM)
    assert wait(pid) == 143
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []
    resumed = make_trainer(tmp_path / "run", config, evaluate=probe)
    resumed.run()
    whole = make_trainer(tmp_path / "whole", config, evaluate=probe)
    whole.run()
    assert lasting_metrics(tmp_path / "run") == lasting_metrics(tmp_path / "whole")
    assert differing(snapshot(resumed), snapshot(whole)) == []


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    def stall(step: int) -> None:
        if step == 7:
            (tmp_path / "stalled").touch()
            time.sleep(60)

    config = TrainingConfig(max_steps=9, checkpoint_every=5)
    pid = forked(lambda: make_trainer(tmp_path / "run", config, data=ToyPairs(before=stall)).run().exit_code)
    until((tmp_path / "stalled").exists)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the first signal waits for the step"
    os.kill(pid, signal.SIGINT)
    assert wait(pid) == 130
    newest = CheckpointStore(tmp_path / "run").newest()
    assert newest is not None and newest.step == 5


def test_a_real_process_exits_143(tmp_path: Path) -> None:
    script = f"""
        import pathlib, sys
        from tests.training.toys import make_trainer
        from transformer.training.config import TrainingConfig
        trainer = make_trainer(pathlib.Path({str(tmp_path)!r}), TrainingConfig(max_steps=20_000))
        sys.exit(trainer.run().exit_code)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment)
    until((tmp_path / "metrics.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == signal.SIGUSR1
        assert signals.attempt(lambda: 1) is None, "nothing long is begun after a signal"
        with pytest.raises(SystemExit, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_an_attempt_gives_its_result_or_none() -> None:
    with StopSignals() as signals:
        assert signals.attempt(lambda: 7) == 7
        assert signals.attempt(lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(60)) is None
        assert signals.received == signal.SIGINT
