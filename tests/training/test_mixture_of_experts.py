"""Mixtures of experts in training: losses once for each block, loads counted once, and a run resumed bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toys import VOCAB, ToyText, differing, make_trainer, snapshot
from transformer.base.sockets import AuxiliaryLosses, Execution
from transformer.data import TextBatch
from transformer.enhancements import enhance, mixture_of_experts, naive_attention, swiglu
from transformer.enhancements.architecture.moe.losses import BalanceLossConfig, RouterZLossConfig
from transformer.enhancements.architecture.moe.sigmoid import SigmoidTopKConfig
from transformer.models import build, gpt
from transformer.training.config import TrainingConfig
from transformer.training.objective import Causal
from transformer.training.optimizer import AdamWConfig
from transformer.training.step import TrainingStep

LOSSES = (BalanceLossConfig(0.05), RouterZLossConfig(0.01))
RATE = 0.01


def model(checkpoint: bool = False, dropout: float = 0.1) -> Any:
    """A small decoder with a dense block and two mixtures that balance by bias."""
    plain = gpt(VOCAB, 12, 2, 3, max_seq_len=16, dropout=dropout)
    router = SigmoidTopKConfig(2, bias_rate=RATE)
    config = enhance(plain, swiglu(), mixture_of_experts(4, router, losses=LOSSES, first=1))
    torch.manual_seed(1)
    return build(config, Execution(naive_attention, checkpoint=checkpoint)).train()


def selections(made: torch.nn.Module) -> list[Any]:
    return [module for module in made.modules() if hasattr(module, "loads")]


def step_of(made: torch.nn.Module, accumulate: int) -> TrainingStep[TextBatch]:
    config = TrainingConfig(max_steps=9, accumulate=accumulate)
    return TrainingStep(made, Causal(), AdamWConfig().build(made), lambda step: 1e-3, None, config)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_loads_are_counted_once_and_move_the_bias(accumulate: int) -> None:
    """With checkpointing, which runs each block twice, as without it; over all micro-batches of a step together."""
    made = [model(checkpoint) for checkpoint in (False, True)]
    steps = [step_of(one, accumulate) for one in made]
    biases = [torch.zeros(4), torch.zeros(4)]
    for number in range(3):
        parts = [ToyText().batch(number, part, accumulate) for part in range(accumulate)]
        for step in steps:
            step(number, parts)
        plain, twice = (selections(one) for one in made)
        assert len(plain) == 2
        for first, second, bias in zip(plain, twice, biases, strict=True):
            assert int(first.loads.sum()) == 2 * 6 * 7  # two experts of each of 6 × 7 tokens
            assert torch.equal(first.loads, second.loads)
            bias += RATE * torch.sign(first.loads.double().mean() - first.loads).float()
            assert torch.equal(first.bias, second.bias)
            torch.testing.assert_close(first.bias, bias, rtol=0, atol=1e-7)
            assert (first.bias.any() or number > 0) and not first.bias.requires_grad
    assert differing(dict(made[0].state_dict()), dict(made[1].state_dict())) == []


def test_evaluation_counts_nothing_and_a_skipped_step_moves_nothing() -> None:
    made = model()
    step, (first, _) = step_of(made, 1), selections(made)
    made.eval()(ToyText().batch(0).tokens)
    assert not first.loads.any()
    made.train()
    step(0, [ToyText().batch(0)])
    bias = first.bias.clone()
    with torch.no_grad():
        spoiled = made.lm_head.weight.clone()
        made.lm_head.weight[0] = torch.nan
    assert step(1, [ToyText().batch(1)]).problem is not None
    assert torch.equal(first.bias, bias) and first.loads.any()
    with torch.no_grad():
        made.lm_head.weight.copy_(spoiled)
    step(2, [ToyText().batch(2)])
    assert int(first.loads.sum()) == 2 * 6 * 7  # those of the skipped step are forgotten


@pytest.mark.parametrize("checkpoint", [False, True], ids=["stored", "checkpointed"])
def test_auxiliary_losses_are_added_once_and_weighted_by_targets(checkpoint: bool) -> None:
    """The step's gradient is that of the mean over all targets, with each micro-batch's losses by its share of them."""
    made = model(checkpoint, dropout=0.0).double()
    tokens = torch.randint(VOCAB, (5, 9), generator=torch.Generator().manual_seed(2))
    parts = [TextBatch(tokens[:2]), TextBatch(tokens[2:, :6])]
    expected = 0.0
    for part in parts:
        collector = AuxiliaryLosses()
        logits = made(part.tokens[:, :-1], auxiliary=collector)
        labels = part.tokens[:, 1:]
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        assert set(collector.named()) == {"balance_loss", "router_z_loss"}
        expected = expected + nll + labels.numel() * collector.total()
    expected = expected / sum(part.tokens[:, 1:].numel() for part in parts)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad()
    step = step_of(made, 2)
    step.config = replace(step.config, clip_norm=None)
    figures = step(0, parts)
    assert figures.loss / figures.count == pytest.approx(expected.item(), rel=1e-12)
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-13, msg=name)
    router = "stack.blocks.1.feed_forward.branch.router.proj.weight"
    assert gradients[router].abs().max() > 1e-3


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Bit for bit, the bias for the choice included, which no optimizer knows."""
    settings = TrainingConfig(max_steps=8, checkpoint_every=3, accumulate=2, ema_decay=0.9)
    whole = make_trainer(tmp_path / "whole", settings, text=True, model=model())
    whole.run()
    stopped = replace(settings, max_steps=5)
    make_trainer(tmp_path / "parts", stopped, text=True, model=model()).run()
    resumed = make_trainer(tmp_path / "parts", settings, text=True, model=model(checkpoint=True))
    resumed.run()
    assert differing(snapshot(whole), snapshot(resumed)) == []
    assert all(selection.bias.any() for selection in selections(resumed.model))
    assert any(name.endswith("selection.bias") for name in snapshot(whole))
