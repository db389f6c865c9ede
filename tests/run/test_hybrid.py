"""Attention, Mamba, experts and depths in one stack: trained, stopped, gone on with bit for bit, and written with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from transformer.cli import run
from transformer.enhancements.architecture.mixture_of_depths import MixtureOfDepths
from transformer.enhancements.architecture.moe.mixture import MixtureOfExperts
from transformer.enhancements.attention.grouped_query import GroupedQueryAttention
from transformer.enhancements.ssm.mamba import Mamba
from transformer.generation import generate
from transformer.interop import load

TINY = """
model:
  {family: hybrid, d_model: 16, n_heads: 2, n_layers: 4, d_ff: 16, layers: [mamba, attention], rope_base: 10000.0,
   use_moe: true, use_mixture_of_depths: true}
data: {kind: text, path: text.txt, tokenizer: {kind: byte}, context: 16, batch_size: 4}
schedule: {kind: constant, warmup_steps: 2}
training: {max_steps: 8, log_every: 2, evaluate_every: 4, checkpoint_every: 4}
evaluation: {sample_tokens: 5}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 40, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_go_on_and_write(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--config", "tiny.yaml", "--output.dir", "whole", "--quiet"]) == 0
    short = ["--training.max_steps", "4"]
    assert run(["train", "--config", "tiny.yaml", "--output.dir", "parts", "--quiet", *short]) == 0
    assert run(["train", "--config", "parts/config.yaml", "--training.max_steps", "8", "--quiet"]) == 0
    model, gone_on = (load(f"{name}/export/checkpoints/step-00000008") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), gone_on.parameters(), strict=True))
    for part in (MixtureOfDepths, MixtureOfExperts, GroupedQueryAttention, Mamba):
        assert any(isinstance(module, part) for module in model.modules()), part
    losses = json.loads((place / "whole" / "results.json").read_text())
    assert losses["val/loss"] < 5.6  # ln 259 = 5.56 and routers' losses are not in it
    prompt = torch.randint(3, 259, (2, 9))
    written = generate(model, prompt, max_new_tokens=6, temperature=0)
    with torch.no_grad():
        for n in range(9, 15):  # cached, each token is what the whole text gives
            assert torch.equal(model(written[:, :n])[:, -1].argmax(-1), written[:, n])
    capsys.readouterr()
    assert run(["generate", "whole", "to be", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("to be")
