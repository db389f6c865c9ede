"""Fuzzed runs: refused in one line with the place, or they build, train a step, save and load."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
import torch

from tests.fuzzing import Outcome, fuzz
from transformer.interop import load
from transformer.run import RunConfig, build_parts, decode_run, encode_run
from transformer.run.config import SECTIONS
from transformer.training.checkpoint import CheckpointStore
from transformer.training.step import TrainingStep

pytestmark = pytest.mark.shapes_unchecked

WORDS = ["ein", "hund", "und", "eine", "katze", "laufen", "durch", "den", "schnee", "mann", "frau", "kind"]


def write_corpus(folder: Path) -> Path:
    rng = random.Random(0)
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("de", "en"):
            lines = "".join(" ".join(rng.choices(WORDS, k=rng.randrange(2, 9))) + "\n" for _ in range(40))
            with gzip.open(folder / f"{split}.{language}.gz", "wt", encoding="utf-8") as file:
                file.write(lines)
    return folder


def base_config(corpus: Path) -> RunConfig:
    data = {
        "model": {"family": "transformer", "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64},
        "data": {"kind": "parallel", "path": str(corpus), "batch_tokens": 200, "tokenizer": {"kind": "byte"}},
        "optimizer": {"kind": "adam"},
        "schedule": {"kind": "noam", "warmup_steps": 10},
        "training": {"max_steps": 20},
    }
    return decode_run(data, {})


def works(config: RunConfig, layers, folder: Path) -> bool:
    """Build, train one step, save, load: the loaded model computes what the saved one did."""
    parts = build_parts(config, layers.origin)
    schedule = config.schedule.build(d_model=16, max_steps=config.training.max_steps)
    optimizer = config.optimizer.build(parts.model)
    step = TrainingStep(parts.model, parts.objective, optimizer, schedule, None, config.training)
    stream = parts.corpus.stream(config.training.seed)
    n = min(config.training.accumulate, 3)
    figures = step(0, [stream.batch(0, part, n) for part in range(n)])
    assert figures.problem is None
    store = CheckpointStore(folder / f"run-{random.random()}")
    path = store.save(1, tensors={"model": parts.model.state_dict()}, state={}, files=parts.files())
    loaded = load(path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), parts.model.parameters(), strict=True))
    return True


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, count: int, seed: int) -> list[Outcome]:
    monkeypatch.chdir(tmp_path)  # a fuzzed path must not be written where the tests are run
    (tmp_path / "corpus").mkdir()
    base = base_config(write_corpus(tmp_path / "corpus"))
    return list(
        fuzz(
            RunConfig,
            base,
            {**SECTIONS, "adam": type(base.optimizer)},
            lambda config, layers: works(config, layers, tmp_path),
            count=count,
            seed=seed,
            folder=tmp_path,
            read=decode_run,
            write=encode_run,
        )
    )


def test_300_fuzzed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = run(tmp_path, monkeypatch, count=300, seed=0)
    refused = sum(outcome.refusal is not None for outcome in outcomes)
    assert 0.4 < refused / len(outcomes) < 0.95
    assert all(outcome.refusal is None for outcome in outcomes if not outcome.damage)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_2000_fuzzed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = run(tmp_path, monkeypatch, count=2000, seed=1)
    assert 0.4 < sum(outcome.refusal is not None for outcome in outcomes) / len(outcomes) < 0.95
