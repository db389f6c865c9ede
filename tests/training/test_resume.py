"""A run that was stopped anywhere and resumed is bit for bit the run that was not."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.disks import QuickDisk
from tests.training.toys import (
    WIDTH,
    ToyPairs,
    ToyText,
    differing,
    lasting_metrics,
    make_trainer,
    probe,
    snapshot,
)
from transformer.training.checkpoint import CheckpointStore
from transformer.training.config import TrainingConfig
from transformer.training.loop import Trainer
from transformer.training.objective import Causal, SequenceToSequence
from transformer.training.optimizer import AdamConfig, AdamWConfig
from transformer.training.schedule import Constant, Cosine, Noam, WarmupStableDecay

pytestmark = pytest.mark.shapes_unchecked

STEPS = 20


class CrashError(Exception):
    """The process dies here, as far as the trainer can tell."""


@dataclass
class Stop:
    """Stops a run when the data of certain steps is asked for, once each."""

    at: dict[int, bool]  # step → whether by a signal rather than a crash

    def __call__(self, step: int) -> None:
        by_signal = self.at.pop(step, None)
        if by_signal:
            os.kill(os.getpid(), random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)))
        elif by_signal is not None:
            raise CrashError


def options(seed: int) -> dict[str, Any]:
    dice = random.Random(seed)
    return {
        "config": TrainingConfig(
            max_steps=STEPS,
            seed=dice.randrange(100),
            precision=dice.choice(("float32", "float32", "bfloat16")),
            accumulate=dice.choice((1, 1, 2, 3)),
            clip_norm=dice.choice((None, 0.1, 1.0)),
            log_every=dice.randint(1, 7),
            evaluate_every=dice.randint(1, 9),
            checkpoint_every=dice.randint(1, 9),
            ema_decay=dice.choice((None, 0.9)),
            keep_last=dice.randint(1, 3),
        ),
        "text": dice.random() < 0.3,
        "smoothing": dice.choice(("uniform", "exclude_gold_and_pad", "wrong_classes")),
        "optimizer": dice.choice((AdamConfig(), AdamWConfig())),
        "schedule": dice.choice(
            (Noam(warmup_steps=5), Cosine(1e-2, 3), WarmupStableDecay(1e-2, 3), Constant(1e-2, 2))
        ),
        "stops": {step: dice.random() < 0.5 for step in dice.sample(range(STEPS), dice.randint(1, 3))},
    }


def trainer(folder: Path, chosen: dict[str, Any], stop: Stop) -> Trainer[Any]:
    text = chosen["text"]
    made = make_trainer(
        folder,
        chosen["config"],
        text=text,
        objective=Causal() if text else SequenceToSequence(smoothing=chosen["smoothing"]),
        optimizer=chosen["optimizer"],
        schedule=chosen["schedule"].build(d_model=WIDTH, max_steps=STEPS),
        data=(ToyText if text else ToyPairs)(before=stop),
        evaluate=probe,
        sample=lambda model, step: f"{step}: {probe(model, step)['val/loss']!r}",
    )
    made.store = CheckpointStore(folder, keep_last=chosen["config"].keep_last, file_system=QuickDisk())
    return made


@pytest.mark.parametrize("seed", range(48))
def test_resumed_is_uninterrupted(tmp_path: Path, seed: int) -> None:
    chosen = options(seed)
    whole = trainer(tmp_path / "whole", chosen, Stop({}))
    assert whole.run().interrupted_by is None
    stop = Stop(dict(chosen["stops"]))
    while True:
        resumed = trainer(tmp_path / "stopped", chosen, stop)
        try:
            if resumed.run().interrupted_by is None:
                break
        except CrashError:
            pass
    assert stop.at == {}, "every stop took place"
    assert differing(snapshot(whole), snapshot(resumed)) == []
    assert lasting_metrics(tmp_path / "whole") == lasting_metrics(tmp_path / "stopped")
    first, second = (run.store.newest() for run in (whole, resumed))
    assert first is not None and second is not None
    for stem in ("model", "optimizer"):
        assert differing(first.tensors(stem), second.tensors(stem)) == []


def test_a_torn_metrics_line_is_written_again(tmp_path: Path) -> None:
    chosen = {**options(1), "config": TrainingConfig(max_steps=STEPS, log_every=2, checkpoint_every=4)}
    trainer(tmp_path / "whole", chosen, Stop({})).run()
    with pytest.raises(CrashError):
        trainer(tmp_path / "torn", chosen, Stop({11: False})).run()
    path = tmp_path / "torn" / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - 17)
    trainer(tmp_path / "torn", chosen, Stop({})).run()
    assert lasting_metrics(tmp_path / "torn") == lasting_metrics(tmp_path / "whole")
