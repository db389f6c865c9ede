"""`transformer evaluate` on files: tasks and texts, for a model that no run here made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from transformer.cli import run
from transformer.data import ByteTokenizer
from transformer.evaluation import report_file, report_task
from transformer.interop import load, to_huggingface
from transformer.models import build, gpt, transformer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    to_huggingface(build(gpt(259, 12, 2, 1, max_seq_len=40)), tmp_path / "model")
    ByteTokenizer().save(tmp_path / "model" / "tokenizer.json")
    rows = [{"query": "q", "choices": ["a", "bc"], "gold": 1}] * 3
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 5)
    return tmp_path


def test_a_task_and_a_text_from_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load("model")
    assert run(["evaluate", "model", "--task", "arc", "--data", "rows.jsonl", "--limit", "2"]) == 0
    said = capsys.readouterr().out
    expected = report_task(model, ByteTokenizer(), "arc", "rows.jsonl", 2)  # type: ignore[arg-type]
    assert all(f"{name:<20} {value:.4f}" in said for name, value in expected.figures.items())
    assert "of 2, 95 % interval" in said
    assert run(["evaluate", "model", "--data", "text.txt"]) == 0
    said = capsys.readouterr().out
    expected = report_file(model, ByteTokenizer(), "text.txt")  # type: ignore[arg-type]
    assert f"text/bits_per_byte   {expected.figures['text/bits_per_byte']:.4f}" in said
    assert "204, in windows of 40" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model --task arcc --data rows.jsonl", "there is no task 'arcc'; did you mean 'arc'?"),
        ("model --task arc", "this needs --data FILE as well"),
        ("model --data text.txt --limit 3", "this needs --task NAME as well"),
        ("model --task arc --data rows.json", "the nearest is 'rows.jsonl'"),
        ("model --task lambada --data rows.jsonl", "line 1 has no 'context'; it has query, choices, gold"),
        ("model --task arc --data rows.jsonl --data.path x", "--data.path is for a run's own data"),
        ("model --data text.txt --split test", "--split is for a run's own data"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert run(["evaluate", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_a_model_of_pairs_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.commands.load", lambda _: build(transformer(20, 8, 2, 1)))
    assert run(["evaluate", "model", "--data", "text.txt"]) == 2
    assert "model holds a model of kind encoder_decoder; tasks and texts are for" in capsys.readouterr().err
