"""Kill a training with `kill -9` again and again, and compare what it comes to with one left in peace.

    python -m tests.training.kill_server right FOLDER KILLS SEED

A server process imports everything and trains once; each victim is a fork of it, which starts in
milliseconds. It is a program of its own because a process that forks must have started no threads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.training.toys import lasting_metrics, make_trainer, probe
from transformer.training import loop
from transformer.training.checkpoint import CheckpointStore
from transformer.training.config import TrainingConfig

Train = Callable[[Path, Callable[[int], None]], None]

CONFIG = TrainingConfig(
    max_steps=60, accumulate=2, log_every=3, evaluate_every=5, checkpoint_every=2, ema_decay=0.9, keep_last=2
)
SHORTEST, LONGEST = 0.02, 0.16  # seconds a victim lives


@dataclass(frozen=True)
class Outcome:
    """`lost`: reported checkpoints that were not there; `damaged`: those that a kill left broken."""

    kills: int = 0
    finished: int = 0
    unequal: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def train(folder: Path, report: Callable[[int], None]) -> None:
    """Train or go on training in `folder`, calling `report(step)` when a save has returned."""
    trainer = make_trainer(folder, CONFIG, evaluate=probe, sample=lambda model, step: f"sample {step}")
    save = trainer.store.save

    def reporting(step: int, **contents: Any) -> Path:
        path = save(step, **contents)
        report(step)
        return path

    trainer.store.save = reporting  # type: ignore[method-assign]
    trainer.run()


def train_forgetfully(folder: Path, report: Callable[[int], None]) -> None:
    """Leave out the optimizer when resuming: a fault that this program must find."""
    loop.load_optimizer_tensors = lambda optimizer, tensors: None  # type: ignore[assignment]
    train(folder, report)


TRAININGS: Mapping[str, Train] = {"right": train, "forgetful": train_forgetfully}


def come_to(folder: Path) -> Mapping[str, object]:
    """Return all that a finished run leaves, but for what a clock says."""
    store = CheckpointStore(folder)
    newest, best = store.newest(), store.best()
    assert newest is not None and best is not None
    state = {name: value for name, value in newest.state.items() if name not in ("seconds", "interval")}
    files = {name: entry for name, entry in newest.manifest.files.items() if name != "state.json"}
    return {
        "state": state,
        "files": files,
        "best": best.step,
        **{name: json.loads((folder / name).read_bytes()) for name in ("latest.json", "best.json")},
        "log": lasting_metrics(folder),
    }


def spawn(run: Train, folder: Path) -> tuple[int, int]:
    """Fork a victim; return its pid and the pipe on which it reports each step it has saved."""
    heard, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(heard)
            run(folder, partial(tell, said))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(said)
    return pid, heard


def tell(pipe: int, step: int) -> None:
    os.write(pipe, step.to_bytes(8, "big"))


def watch(pid: int, heard: int, lifetime: float | None) -> tuple[int, int | None]:
    """Kill the victim after `lifetime` seconds; return its wait status and the last step it reported."""
    if lifetime is not None:
        time.sleep(lifetime)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(heard, "rb") as pipe:
        reports = pipe.read()
    status = os.waitpid(pid, 0)[1]
    return status, int.from_bytes(reports[-8:], "big") if reports else None


def torture(run: Train, root: Path, kills: int, seed: int) -> Outcome:
    """Kill until there were `kills`; then let the last run end in peace. Compare every run that ends."""
    run(root / "reference", lambda step: None)
    expected = come_to(root / "reference")
    dice = random.Random(seed)
    outcome, reported = Outcome(), -1
    while outcome.kills < kills or reported >= 0:
        folder = root / f"run-{outcome.finished}"
        lifetime = dice.uniform(SHORTEST, LONGEST) if outcome.kills < kills else None
        status, step = watch(*spawn(run, folder), lifetime)
        reported = max(reported, -1 if step is None else step)
        outcome = inspect(outcome, folder, reported)
        if os.WIFSIGNALED(status):
            outcome = replace(outcome, kills=outcome.kills + 1)
        elif os.waitstatus_to_exitcode(status) == 0:
            found = come_to(folder)
            unequal = [
                f"{folder}: {name}: {found[name]}" for name in expected if found[name] != expected[name]
            ]
            outcome = replace(outcome, finished=outcome.finished + 1, unequal=(*outcome.unequal, *unequal))
            reported = -1
        else:
            return replace(outcome, failed=(f"{folder} ended with status {status}",))
    return outcome


def inspect(outcome: Outcome, folder: Path, reported: int) -> Outcome:
    """Look at what a kill has left: everything committed is intact, and nothing reported is missing."""
    store = CheckpointStore(folder)
    try:
        newest = store.newest()
        for step in store.steps():
            store.open(step)
    except ValueError as error:
        return replace(outcome, damaged=(*outcome.damaged, str(error)))
    if newest is not None and newest.skipped:
        outcome = replace(outcome, damaged=outcome.damaged + newest.skipped)
    if reported > (-1 if newest is None else newest.step):
        outcome = replace(outcome, lost=(*outcome.lost, f"{folder}: step {reported}"))
    return outcome


def main(training: str, folder: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    outcome = torture(TRAININGS[training], Path(folder), int(kills), int(seed))
    sys.stdout.write(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main(*sys.argv[1:])
