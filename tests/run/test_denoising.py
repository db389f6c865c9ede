"""T5 from the command line: span corruption and text to text; train, stop, go on, evaluate."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from transformer.cli import run
from transformer.interop import load
from transformer.interop.native import load_tokenizer_of

TINY = """
model: {family: t5, d_model: 16, n_heads: 2, n_layers: 1, dropout: 0.1, version: "1.1"}
data: {kind: text, path: text.txt, tokenizer: {kind: byte}, context: 40, batch_size: 4}
objective: {kind: span_corruption, share: 0.2, mean_span: 2.0}
schedule: {kind: constant, warmup_steps: 2}
training: {max_steps: 6, log_every: 2, evaluate_every: 3, checkpoint_every: 3}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = random.Random(0).choices(
        ["a", "small", "text", "that", "is", "made", "of", "words", "and", "lines"], k=600
    )
    (tmp_path / "text.txt").write_text(" ".join(words), encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_go_on_and_evaluate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--config", "tiny.yaml", "--output.dir", "whole", "--quiet"]) == 0
    results = json.loads((place / "whole" / "results.json").read_text())
    assert {"validation/nll", "validation/perplexity", "val/loss"} <= results.keys()
    short = ["--training.max_steps", "3"]
    assert run(["train", "--config", "tiny.yaml", "--output.dir", "parts", "--quiet", *short]) == 0
    assert run(["train", "--config", "parts/config.yaml", "--training.max_steps", "6", "--quiet"]) == 0
    paths = [place / name / "export/checkpoints/step-00000006" for name in ("whole", "parts")]
    models = [load(str(path)) for path in paths]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    tokenizer = load_tokenizer_of(paths[0])
    assert tokenizer.vocab_size == models[0].config.vocab_size == 259 + 100
    assert tokenizer.special("⟨sentinel 0⟩") == 358
    capsys.readouterr()
    assert run(["evaluate", "whole", "--split", "validation"]) == 0
    assert f"{results['validation/nll']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--objective.share", "0.0"], "objective.share"),
        (["--objective.kind", "causal"], "objective.kind causal does not fit text data"),
        (["--data.context", "999", "--objective.share", "0.5"], "has 250 spans, which need 251 sentinels"),
        (["--model.version", "1.2"], "model.version"),
        (["--model.n_heads", "3"], "d_model 16 cannot be split into n_heads 3"),
    ],
)
def test_mistakes_are_told_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], override: list[str], message: str
) -> None:
    assert run(["train", "--config", "tiny.yaml", *override]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["t5_multi30k", "t5_shakespeare"])
def test_the_configs_of_the_repository_are_read(name: str) -> None:
    from transformer.run import read_run

    config, _ = read_run([Path(__file__).parents[2] / "configs" / f"{name}.yaml"])
    architecture, _ = config.model.architecture(vocab_size=100)
    assert not architecture.tie_embeddings and config.model.kind == "t5"
