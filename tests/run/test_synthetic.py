"""A made task from the command line: train, stop, go on, examine at other lengths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from transformer.cli import run
from transformer.interop import load

TINY = """
model: {family: gpt, d_model: 16, n_heads: 2, n_layers: 1, max_seq_len: 32, dropout: 0.0}
data: {kind: synthetic, task: {kind: sorting, items: 4, alphabet: 6}, batch_size: 8, lengths: [4, 6]}
schedule: {kind: constant, warmup_steps: 2}
training: {max_steps: 8, log_every: 2, evaluate_every: 4, checkpoint_every: 4}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_go_on_and_evaluate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--config", "tiny.yaml", "--output.dir", "whole", "--quiet"]) == 0
    results = json.loads((place / "whole" / "results.json").read_text())
    assert {"test/4/accuracy", "test/6/solved", "val/accuracy", "val/loss"} <= results.keys()
    short = ["--training.max_steps", "4"]
    assert run(["train", "--config", "tiny.yaml", "--output.dir", "parts", "--quiet", *short]) == 0
    assert run(["train", "--config", "parts/config.yaml", "--training.max_steps", "8", "--quiet"]) == 0
    models = [load(f"{name}/export/checkpoints/step-00000008") for name in ("whole", "parts")]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    capsys.readouterr()
    assert run(["evaluate", "whole", "--split", "test"]) == 0
    assert f"{results['test/6/loss']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--data.lengths", "[40]"], "max_seq_len 32 is less than the 80 tokens"),
        (["--data.task.items", "0"], "data.task.items"),
        (["--data.task.kind", "sortin"], "sorting"),
        (["--model.family", "transformer"], "reads parallel"),
    ],
)
def test_mistakes_are_told_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], override: list[str], message: str
) -> None:
    assert run(["train", "--config", "tiny.yaml", *override]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_cost_of_a_made_task_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "--config", "tiny.yaml"]) == 0
    said = capsys.readouterr().out
    assert "8 rows of 8 tokens" in said and "training memory" in said
