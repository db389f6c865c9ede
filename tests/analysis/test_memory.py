"""The memory estimate against what the kernel of the operating system measures."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from transformer.analysis.cost import Memory, Shape, estimate_memory

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("memory_presets", HERE / "presets.py")
assert spec is not None and spec.loader is not None
presets: Any = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = presets
spec.loader.exec_module(presets)


def estimate(preset: Any) -> Memory:
    return estimate_memory(
        preset.config,
        preset.execution,
        preset.shape,
        objective=preset.objective,
        optimizer=preset.optimizer,
        training=preset.training,
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="measured through Linux's /proc and glibc")
@pytest.mark.parametrize(
    "name", [n if n == "gpt" else pytest.param(n, marks=pytest.mark.slow) for n in presets.PRESETS]
)
def test_the_estimate_is_within_ten_percent_of_what_training_takes(name: str) -> None:
    run = [sys.executable, str(HERE / "presets.py"), name]
    source = str(HERE.parents[1] / "src")
    env = {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "PATH": ""}
    done = subprocess.run(run, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout)
    assert estimate(presets.PRESETS[name]).peak == pytest.approx(measured, rel=0.1)


def test_what_is_kept_for_the_whole_run_is_counted_to_the_byte() -> None:
    preset = presets.PRESETS["lean"]
    model = presets.build(preset.config)
    weights = sum(p.nbytes for p in model.parameters())
    memory = estimate(preset)
    assert memory.weights == weights + sum(b.nbytes for b in model.buffers())
    assert memory.gradients == memory.average == weights
    tensors = len(list(model.parameters()))
    assert memory.optimizer == 2 * weights + 4 * tensors  # two moments, and a count of steps for each tensor
    assert memory.peak > memory.weights + memory.optimizer + memory.average + memory.activations


def test_choices_that_save_memory_are_seen_to_do_so() -> None:
    preset = replace(presets.PRESETS["gpt"], shape=Shape(4, 128), training=presets.TrainingConfig())
    plain = estimate(preset)
    assert plain == estimate(preset)
    halved = estimate(replace(preset, shape=Shape(2, 128)))
    assert 1.9 < plain.activations / halved.activations < 2.1
    again = estimate(replace(preset, execution=replace(preset.execution, checkpoint=True)))
    assert again.activations < 0.5 * plain.activations
    fused = estimate(replace(preset, execution=presets.Execution(presets.sdpa_attention)))
    assert fused.activations < plain.activations
    twice = estimate(replace(preset, training=presets.TrainingConfig(accumulate=2)))
    assert twice.peak - plain.peak == pytest.approx(plain.gradients, rel=0.3)
    average = estimate(replace(preset, training=presets.TrainingConfig(ema_decay=0.9)))
    assert average.peak - plain.peak == average.average == plain.gradients
