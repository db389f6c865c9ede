"""Numbers that go wrong are found before they reach the weights, and named."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.toys import ToyModel, ToyPairs, differing, lasting_metrics, make_trainer, snapshot
from transformer.training.checkpoint import CheckpointStore
from transformer.training.config import TrainingConfig
from transformer.training.loop import MAX_SKIPS_IN_A_ROW
from transformer.training.watch import NonFiniteError, SpikeDetector

pytestmark = pytest.mark.shapes_unchecked

LAYERS = [name for name, _ in ToyModel().named_children()]
BAD_STEP = 3
BADS = [float("nan"), float("inf"), float("-inf")]


class PoisonedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.full_like(gradients[0], float("nan"))


class Scene:
    """A run in which `poison` acts on the output of one layer while step `BAD_STEP` (from 0) is computed."""

    def __init__(self, folder: Path, layer: str, poison: Callable[[Tensor], Tensor], **options: Any) -> None:
        self.now = 0
        model = ToyModel()
        model.get_submodule(layer).register_forward_hook(self._hook(poison))
        config = TrainingConfig(max_steps=8, log_every=1, checkpoint_every=2, **options)
        self.trainer = make_trainer(folder, config, model=model, data=ToyPairs(before=self._look))
        self.before: dict[str, Tensor] = {}

    def _look(self, step: int) -> None:
        self.now = step
        if step == BAD_STEP and not self.before:
            self.before = snapshot(self.trainer)

    def _hook(self, poison: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if self.now != BAD_STEP:
                return output
            return (poison(output[0]), *output[1:]) if isinstance(output, tuple) else poison(output)

        return hook


@pytest.mark.parametrize("bad", BADS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_bad_output_of_any_layer_stops_before_the_step(tmp_path: Path, layer: str, bad: float) -> None:
    def poison(output: Tensor) -> Tensor:
        return output.index_fill(0, torch.tensor(1), bad)

    scene = Scene(tmp_path, layer, poison, accumulate=2, ema_decay=0.9)
    kind = type(scene.trainer.model.get_submodule(layer)).__name__
    where = rf"step 4, micro-batch 1 of 2: loss \S+; .* is that of {layer} \({kind}\)"
    with pytest.raises(NonFiniteError, match=f"{where}; the weights are those of step 3"):
        scene.trainer.run()
    assert differing(scene.before, snapshot(scene.trainer)) == []
    newest = CheckpointStore(tmp_path).newest()
    assert newest is not None and newest.step == BAD_STEP
    assert lasting_metrics(tmp_path)[-1]["step"] == BAD_STEP


@pytest.mark.parametrize("layer", LAYERS)
def test_a_bad_gradient_under_any_layer_stops_before_the_step(tmp_path: Path, layer: str) -> None:
    scene = Scene(tmp_path, layer, PoisonedGradient.apply)
    with pytest.raises(
        NonFiniteError, match=r"step 4: loss [\d.]+; the gradient of '[\w.]+'.* is not finite; the weights"
    ):
        scene.trainer.run()
    assert differing(scene.before, snapshot(scene.trainer)) == []


def test_a_bad_parameter_is_named(tmp_path: Path) -> None:
    model = ToyModel()
    with torch.no_grad():
        model.norm.bias[0] = float("nan")
    trainer = make_trainer(tmp_path, TrainingConfig(max_steps=2), model=model)
    with pytest.raises(
        NonFiniteError, match=r"is that of norm \(LayerNorm\), whose parameter 'bias' is not finite"
    ):
        trainer.run()
    assert CheckpointStore(tmp_path).newest() is None, "weights that are not finite are not saved"
    assert trainer._unsaved is not None and "step 0 is not saved" in trainer._unsaved


def test_skipping_leaves_the_weights_and_goes_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "norm", lambda output: output * float("nan"), on_non_finite="skip")
    result = scene.trainer.run()
    assert result.step == 8
    records = [record for record in lasting_metrics(tmp_path) if "train/skipped" in record]
    assert [(r["step"], r["train/skipped"], r["train/loss"]) for r in records] == [(BAD_STEP + 1, 1, None)]
    after = CheckpointStore(tmp_path, keep_last=9).open(BAD_STEP + 1)
    assert (
        differing(after.tensors("model"), {k[6:]: v for k, v in scene.before.items() if k[:6] == "model."})
        == []
    )


def test_skipping_for_ever_is_a_failed_run(tmp_path: Path) -> None:
    model = ToyModel()
    model.norm.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    config = TrainingConfig(max_steps=99, on_non_finite="skip")
    with pytest.raises(NonFiniteError, match=f"step {MAX_SKIPS_IN_A_ROW + 1}, micro-batch 1 of 1: loss nan"):
        make_trainer(tmp_path, config, model=model).run()


def test_spikes_are_found_and_noise_is_not() -> None:
    dice = random.Random(0)
    found = false_alarms = 0
    detector = SpikeDetector()
    for step in range(10_000):
        false_alarms += detector.is_spike(5 * 0.9997**step + dice.gauss(0, 0.1))
    for _ in range(200):
        for _ in range(128):
            detector.is_spike(2 + dice.gauss(0, 0.1))
        found += detector.is_spike(2 + 0.8)
    assert false_alarms <= 1
    assert found >= 198


def test_a_spike_is_marked_in_the_metrics(tmp_path: Path) -> None:
    model = ToyModel()
    trainer = make_trainer(tmp_path, TrainingConfig(max_steps=60, log_every=1), model=model)

    def spike(step: int) -> None:
        if step == 50:
            with torch.no_grad():
                model.norm.weight.mul_(30)

    trainer.data = ToyPairs(before=spike)
    trainer.run()
    assert [r["step"] for r in lasting_metrics(tmp_path) if "train/spikes" in r][:1] == [51]
