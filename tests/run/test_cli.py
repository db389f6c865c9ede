"""The command line from end to end, on a corpus of a few sentences: train, stop, go on, evaluate, translate."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.run.test_run_fuzz import write_corpus
from transformer.cli import run
from transformer.interop import load

ROOT = Path(__file__).parent.parent.parent
TINY = """
model: {family: transformer, d_model: 16, n_heads: 2, n_layers: 1, max_seq_len: 64}
data: {path: corpus, batch_tokens: 200, tokenizer: {kind: byte}}
optimizer: {kind: adam}
schedule: {kind: noam, warmup_steps: 10}
training: {max_steps: 12, log_every: 2, evaluate_every: 6, checkpoint_every: 4, ema_decay: 0.9}
evaluation: {beam_size: 2, samples: 2, figures: 1}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_evaluate_translate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--config", "tiny.yaml", "--output.dir", "out"]) == 0
    said = capsys.readouterr().out
    assert "transformer translate out" in said
    for name in ("config.yaml", "provenance.json", "metrics.jsonl", "results.json", "console.log"):
        assert (place / "out" / name).is_file(), name
    assert (place / "out" / "figures" / "attention-1.png").read_bytes()[:4] == b"\x89PNG"
    results = json.loads((place / "out" / "results.json").read_text())
    assert {"test/bleu", "test/nll", "val/loss", "perf/tokens_per_second", "mem/peak_bytes"} <= results.keys()
    assert "13a" in results["notes"]["bleu signature"]
    assert run(["evaluate", "out"]) == 0
    assert f"{results['test/nll']:.4f}" in capsys.readouterr().out, (
        "evaluate must see the weights that were judged"
    )
    assert run(["translate", "out", "ein hund", "eine katze", "--beam-size", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_a_longer_run_goes_on_bit_for_bit(place: Path) -> None:
    assert run(["train", "--config", "tiny.yaml", "--output.dir", "whole", "--quiet"]) == 0
    parts = ["train", "--config", "tiny.yaml", "--output.dir", "parts", "--quiet"]
    assert run([*parts, "--training.max_steps", "8"]) == 0
    assert run(["train", "--config", "parts/config.yaml", "--training.max_steps", "12", "--quiet"]) == 0
    whole, gone_on = (
        load("whole/export/checkpoints/step-00000012"),
        load("parts/export/checkpoints/step-00000012"),
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), gone_on.parameters(), strict=True))


def test_sigterm_saves_and_exits_143(place: Path) -> None:
    command = [sys.executable, "-m", "transformer", "train", "--config", "tiny.yaml", "--output.dir", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--training.max_steps", "100000"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 100
        while not (place / "out" / "latest.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert load("out") is not None


def test_generate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "text.txt").write_text("to be or not to be, that is the question\n" * 40, encoding="utf-8")
    settings = (
        "--model.family gpt --model.d_model 16 --model.n_heads 2 --model.n_layers 1 --model.max_seq_len 64"
    )
    data = (
        "--data.path text.txt --data.context 16 --data.batch_size 4 --training.max_steps 4 --output.dir out"
    )
    schedule = "--schedule.kind constant --evaluation.prompt to"
    (place / "empty.yaml").write_text("", encoding="utf-8")
    assert run(["train", "--config", "empty.yaml", *f"{settings} {data} {schedule}".split(), "--quiet"]) == 0
    capsys.readouterr()
    assert run(["generate", "out", "to be", "--max-new-tokens", "20", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("to be")
    assert run(["translate", "out", "ein hund"]) == 2
    assert "needs an encoder-decoder" in capsys.readouterr().err


def test_prepare_then_train(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.path", "corpus", "--data.tokenizer.kind", "byte"]
    assert run(["prepare", "mine", *data]) == 0
    assert "40 pairs" in capsys.readouterr().out
    train = ["train", "--config", "tiny.yaml", "--data.path", "mine", "--output.dir", "out", "--quiet"]
    assert run(train) == 0


def test_inspect(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "--config", "tiny.yaml", "--training.seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "tiny.yaml:2" in said and "--training.seed" in said and "default" in said
    assert "FLOPs per token" in said and "multi_head_attention" in said and "training memory" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--config", "tiny.yaml", "--training.max_step", "3"], "max_steps"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--config", "tiny.yaml", "--model.n_heads", "3"], "n_heads"),
        (["train", "--config", "tiny.yaml", "--model.d_model", "1000000"], "GiB"),
        (["train", "--config", "tiny.yaml", "--model.max_seq_len", "8"], "max_seq_len"),
        (["train", "--config", "tiny.yaml", "--data.path", "corpse"], "the nearest is 'corpus'"),
        (["translate", "nowhere", "ein hund"], "nowhere"),
        (["trian"], "train"),
    ],
)
def test_a_mistake_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert len(said.err.splitlines()) == 1, said.err


def test_help_needs_no_pytorch_and_is_quick(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the second call is measured, as users know it
    code = "import sys; from transformer.cli import run; run(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)

    def seconds(*arguments: str) -> float:
        """Processor time, which other work on the machine hardly lengthens; the least of some calls."""
        found = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, *arguments]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        return min(found)

    assert seconds("-m", "transformer", "--help") <= 25 * seconds(
        "-c", "pass"
    )  # 0.4 s where Python takes 16 ms
