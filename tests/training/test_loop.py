"""The training loop: accumulation, clipping, evaluation, honest figures, and what it refuses."""

from __future__ import annotations

import errno
import io
import os
import random
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tests.training.toys import (
    ToyModel,
    ToyPairs,
    ToyText,
    differing,
    lasting_metrics,
    make_trainer,
    probe,
    snapshot,
)
from transformer.data import PairBatch
from transformer.training.checkpoint import CheckpointError, CheckpointStore
from transformer.training.config import TrainingConfig
from transformer.training.filesystem import FileSystem
from transformer.training.metrics import read_metrics
from transformer.training.objective import SequenceToSequence
from transformer.training.optimizer import AdamWConfig
from transformer.training.progress import Progress
from transformer.training.schedule import Noam
from transformer.training.step import TrainingStep

pytestmark = pytest.mark.shapes_unchecked


def gradient(model: nn.Module, batches: list[PairBatch]) -> Tensor:
    """Return the gradient that one step sees, with a learning rate of 0 so that the weights stay."""
    config = TrainingConfig(clip_norm=None)
    step = TrainingStep(model, SequenceToSequence(), AdamWConfig().build(model), lambda s: 0.0, None, config)
    step(0, batches)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def split(batch: PairBatch, cuts: list[int]) -> list[PairBatch]:
    bounds = [0, *sorted(cuts), len(batch.source)]
    return [
        PairBatch(batch.source[a:b], batch.source_mask[a:b], batch.target[a:b], batch.target_mask[a:b])
        for a, b in pairwise(bounds)
    ]


def test_any_split_into_micro_batches_has_the_gradient_of_the_large_batch() -> None:
    """150 random ragged splits, some parts empty, some whose targets are all padding."""
    dice = random.Random(0)
    model = ToyModel(dropout=0.0, dtype=torch.float64)
    unequal = 0
    for trial in range(150):
        batch = ToyPairs(seed=trial, rows=8).batch(0)
        if trial % 3 == 0:
            lengths = batch.target_mask.sum(1).where(torch.arange(8) != trial % 8, 1)
            batch = replace(batch, target_mask=torch.arange(9) < lengths[:, None])
        parts = split(batch, [dice.randint(0, 8) for _ in range(dice.randint(1, 4))])
        unequal += len({SequenceToSequence().count(part) for part in parts}) > 1
        whole = gradient(model, [batch])
        assert (gradient(model, parts) - whole).abs().max() <= 1e-12 * max(1.0, whole.abs().max().item())
    assert unequal > 100, "equal parts would not tell a mean of means from the mean"


@pytest.mark.parametrize("clip", [1e-3, 0.1])
def test_clipping_bounds_the_global_norm(clip: float) -> None:
    model = ToyModel(dropout=0.0, dtype=torch.float64)
    free = gradient(model, [ToyPairs().batch(0)])
    step = TrainingStep(
        model,
        SequenceToSequence(),
        AdamWConfig().build(model),
        lambda s: 0.0,
        None,
        TrainingConfig(clip_norm=clip),
    )
    figures = step(0, [ToyPairs().batch(0)])
    clipped = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert figures.gradient_norm == pytest.approx(free.norm().item(), rel=1e-12), "the norm before clipping"
    assert clipped.norm().item() == pytest.approx(clip, rel=1e-4)
    torch.testing.assert_close(clipped, free * (clip / free.norm()), rtol=1e-4, atol=1e-12)


def test_a_window_with_no_targets_changes_nothing(tmp_path: Path) -> None:
    class NoTargets(ToyPairs):
        def batch(self, step: int, part: int = 0, parts: int = 1) -> PairBatch:
            batch = super().batch(step, part, parts)
            return replace(batch, target_mask=torch.zeros_like(batch.target_mask))

    trainer = make_trainer(tmp_path, TrainingConfig(max_steps=2, log_every=1), data=NoTargets())
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    result = trainer.run()
    assert differing(before, dict(trainer.model.named_parameters())) == []
    assert result.tokens == 0 and result.train_loss is None


def test_bfloat16_keeps_weights_and_losses_in_float32(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, TrainingConfig(max_steps=3, precision="bfloat16"))
    seen = []
    trainer.model.expand.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[union-attr]
    trainer.run()
    assert set(seen) == {torch.bfloat16}
    assert {tensor.dtype for tensor in snapshot(trainer).values()} == {torch.float32}
    other = make_trainer(tmp_path / "full", TrainingConfig(max_steps=3))
    other.run()
    full, half = (lasting_metrics(path)[-1]["train/loss"] for path in (tmp_path / "full", tmp_path))
    assert half == pytest.approx(full, rel=2e-2) and half != full


def test_the_toy_task_is_learnt(tmp_path: Path) -> None:
    """Copying one token is easy; random targets, whose loss cannot fall below ln 10, are not learnable."""

    class Copy(ToyPairs):
        def batch(self, step: int, part: int = 0, parts: int = 1) -> PairBatch:
            batch = super().batch(step, part, parts)
            return replace(batch, target=batch.source[:, :1].expand_as(batch.target).contiguous())

    config = TrainingConfig(max_steps=150, log_every=50)
    assert (make_trainer(tmp_path / "copy", config, data=Copy()).run().train_nll or 9) < 0.3
    assert (make_trainer(tmp_path / "noise", config).run().train_nll or 0) > 2.28


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(tmp_path: Path) -> None:
    config = TrainingConfig(max_steps=12, log_every=3, evaluate_every=6, accumulate=2, ema_decay=0.9)
    trainers = [
        make_trainer(
            tmp_path / str(n), replace(config, seed=seed), evaluate=probe, sample=lambda m, s: f"{s}"
        )
        for n, seed in enumerate((5, 5, 6))
    ]
    for trainer in trainers:
        trainer.run()
    first, second, other = (lasting_metrics(tmp_path / str(n)) for n in range(3))
    assert first == second != other
    assert differing(snapshot(trainers[0]), snapshot(trainers[1])) == []


def test_evaluation_sees_averaged_weights_in_eval_mode_and_its_score_ranks(tmp_path: Path) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        averaged = all(torch.equal(p, trainer.average.tensors[n]) for n, p in model.named_parameters())  # type: ignore[union-attr]
        seen.append((step, averaged, model.training or torch.is_grad_enabled()))
        return {"val/loss": abs(step - 4) / 8}

    config = TrainingConfig(max_steps=10, evaluate_every=2, checkpoint_every=2, ema_decay=0.5, keep_last=1)
    trainer = make_trainer(tmp_path, config, evaluate=evaluate)
    result = trainer.run()
    assert seen == [(step, True, False) for step in (2, 4, 6, 8, 10)]
    assert result.evaluation == {"val/loss": 0.75}
    best = CheckpointStore(tmp_path).best()
    assert best is not None and (best.step, best.score) == (4, 0.0)
    assert CheckpointStore(tmp_path).steps() == (4, 10)


def test_the_last_step_logs_evaluates_and_saves(tmp_path: Path) -> None:
    make_trainer(tmp_path, TrainingConfig(max_steps=7), evaluate=probe, files={"config.yaml": b"a: 1"}).run()
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [7, 7]
    newest = CheckpointStore(tmp_path).newest()
    assert newest is not None and newest.step == 7
    assert newest.file("config.yaml") == b"a: 1"


def test_logged_figures_are_means_over_their_interval(tmp_path: Path) -> None:
    schedule = Noam(warmup_steps=3).build(d_model=8, max_steps=4)
    make_trainer(tmp_path / "one", TrainingConfig(max_steps=4, log_every=1), schedule=schedule).run()
    make_trainer(tmp_path / "four", TrainingConfig(max_steps=4, log_every=4), schedule=schedule).run()
    singles, (mean,) = lasting_metrics(tmp_path / "one"), lasting_metrics(tmp_path / "four")
    counts = [SequenceToSequence().count(ToyPairs().batch(step)) for step in range(4)]
    for name in ("train/loss", "train/nll"):
        expected = sum(c * r[name] for c, r in zip(counts, singles, strict=True)) / sum(counts)
        assert mean[name] == pytest.approx(expected, rel=1e-12)
    assert mean["train/tokens"] == sum(counts)
    assert [record["opt/lr"] for record in singles] == [schedule(step) for step in (1, 2, 3, 4)]
    assert mean["opt/grad_norm"] == singles[-1]["opt/grad_norm"]


def test_printed_tokens_per_second_agree_with_an_outside_clock(tmp_path: Path) -> None:
    """The outside clock runs from the first batch to the evaluation, and not while evaluating or saving."""
    segments: list[float] = []
    steps = 50

    def before(step: int) -> None:
        if step % steps == 0:
            segments.append(-time.perf_counter())
        time.sleep(0.02)

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        segments[-1] += time.perf_counter()
        time.sleep(0.3)
        return {}

    config = TrainingConfig(
        max_steps=2 * steps, log_every=steps, evaluate_every=steps, checkpoint_every=steps
    )
    out = io.StringIO()
    with Progress(Console(file=out, width=200)) as progress:
        arguments: dict[str, Any] = {
            "data": ToyPairs(before=before),
            "evaluate": evaluate,
            "progress": progress,
        }
        result = make_trainer(tmp_path, config, **arguments).run()
    counts = [SequenceToSequence().count(ToyPairs().batch(step)) for step in range(2 * steps)]
    printed = [
        float(line.split(" tokens/s")[0].split()[-1].replace(",", "")) for line in lines_with_rate(out)
    ]
    for number in (0, 1):
        outside = sum(counts[number * steps :][:steps]) / segments[number]
        assert printed[number] == pytest.approx(outside, rel=0.02)
    assert result.tokens_per_second == pytest.approx(sum(counts) / sum(segments), rel=0.02)


def lines_with_rate(out: io.StringIO) -> Iterable[str]:
    return [line for line in out.getvalue().splitlines() if "tokens/s" in line]


def test_peak_memory_is_that_of_the_process(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    result = make_trainer(tmp_path, TrainingConfig(max_steps=1)).run()
    assert result.peak_bytes >= 0.9 * psutil.Process().memory_info().rss


class FullDisk(FileSystem):
    """Full from the `first` save on."""

    def __init__(self, first: int) -> None:
        self.first, self.saves = first, 0

    def mkdir(self, path: Path) -> None:
        self.saves += path.name.startswith(".tmp-")
        super().mkdir(path)

    def write(self, path: Path, chunks: Iterable[Any]) -> None:
        if self.saves >= self.first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().write(path, chunks)


def test_a_full_disk_is_a_warning_and_training_goes_on(tmp_path: Path) -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=500), "quiet") as progress:
        trainer = make_trainer(tmp_path, TrainingConfig(max_steps=6, checkpoint_every=2), progress=progress)
        trainer.store = CheckpointStore(tmp_path, file_system=FullDisk(first=2))
        result = trainer.run()
    assert result.step == 6
    assert result.unsaved is not None and "No space left on device" in result.unsaved
    assert [line[:30] for line in out.getvalue().splitlines()] == [
        "warning: step 4 is not saved: ",
        "warning: step 6 is not saved: ",
    ]
    newest = CheckpointStore(tmp_path).newest()
    assert newest is not None and newest.step == 2


def test_a_full_disk_stops_the_run_where_asked(tmp_path: Path) -> None:
    config = TrainingConfig(max_steps=6, checkpoint_every=2, on_save_error="stop")
    trainer = make_trainer(tmp_path, config)
    trainer.store = CheckpointStore(tmp_path, file_system=FullDisk(first=1))
    with pytest.raises(CheckpointError, match="step 2 is not saved: .*No space left on device"):
        trainer.run()


def test_never_resuming_refuses_a_used_folder(tmp_path: Path) -> None:
    make_trainer(tmp_path, TrainingConfig(max_steps=1)).run()
    trainer = make_trainer(tmp_path, TrainingConfig(max_steps=1, resume="never"))
    with pytest.raises(
        ValueError, match=r"resume is 'never' but .* already holds checkpoints; use resume: auto"
    ):
        trainer.run()


@pytest.mark.parametrize("inside", [False, True])
def test_resuming_from_elsewhere_leaves_the_other_run_alone(tmp_path: Path, inside: bool) -> None:
    first = make_trainer(tmp_path / "a", TrainingConfig(max_steps=4))
    first.run()
    listing = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "a").rglob("*") if p.name != "run.lock")
    path = next((tmp_path / "a" / "checkpoints").iterdir()) if inside else tmp_path / "a"
    second = make_trainer(tmp_path / "b", TrainingConfig(max_steps=8, resume=str(path)))
    result = second.run()
    whole = make_trainer(tmp_path / "c", TrainingConfig(max_steps=8))
    whole.run()
    assert result.step == 8
    assert differing(snapshot(second), snapshot(whole)) == []
    assert (
        sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "a").rglob("*") if p.name != "run.lock")
        == listing
    )


def test_another_identity_is_refused_naming_both(tmp_path: Path) -> None:
    config = TrainingConfig(max_steps=2)
    make_trainer(tmp_path, config, fingerprints={"tokenizer": "aaa"}).run()
    with pytest.raises(
        ValueError, match="its tokenizer is aaa, this run's is bbb; restore the former tokenizer, or"
    ):
        make_trainer(tmp_path, config, fingerprints={"tokenizer": "bbb"}).run()
    with pytest.raises(ValueError, match="its seed is 0, this run's is 1"):
        make_trainer(tmp_path, replace(config, seed=1), fingerprints={"tokenizer": "aaa"}).run()


def test_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    make_trainer(tmp_path, TrainingConfig(max_steps=2)).run()
    model = ToyModel()
    model.norm = nn.LayerNorm(8, bias=False)
    with pytest.raises(ValueError, match=r"it is of another model: .*norm\.bias") as caught:
        make_trainer(tmp_path, TrainingConfig(max_steps=3), model=model).run()
    assert "\n" not in str(caught.value)


def test_another_thread_count_is_a_warning(tmp_path: Path) -> None:
    make_trainer(tmp_path, TrainingConfig(max_steps=2)).run()
    out, threads = io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with Progress(Console(file=out, width=200)) as progress:
            make_trainer(tmp_path, TrainingConfig(max_steps=3), progress=progress).run()
    finally:
        torch.set_num_threads(threads)
    assert f"warning: threads was {threads} and is now {threads + 1}: results will differ" in out.getvalue()


def test_a_damaged_checkpoint_is_skipped_with_its_reason(tmp_path: Path) -> None:
    make_trainer(tmp_path, TrainingConfig(max_steps=4, checkpoint_every=2)).run()
    (tmp_path / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"torn")
    out = io.StringIO()
    with Progress(Console(file=out, width=500)) as progress:
        trainer = make_trainer(tmp_path, TrainingConfig(max_steps=4, checkpoint_every=2), progress=progress)
        assert trainer.run().step == 4
    assert "warning: skipped a checkpoint: " in out.getvalue() and "step-00000004" in out.getvalue()
    assert "resuming after step 2" in out.getvalue()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    second = make_trainer(tmp_path, TrainingConfig(max_steps=1))

    def start_another(step: int) -> None:
        with pytest.raises(ValueError, match=str(os.getpid())):
            second.run()

    first = make_trainer(tmp_path, TrainingConfig(max_steps=1), data=ToyPairs(before=start_another))
    assert first.run().step == 1


def test_a_finished_run_only_says_so_again(tmp_path: Path) -> None:
    config = TrainingConfig(max_steps=5, evaluate_every=2)
    once = make_trainer(tmp_path, config, evaluate=probe).run()
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    again = make_trainer(tmp_path, config, evaluate=probe).run()
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines
    assert replace(again, peak_bytes=0) == replace(once, peak_bytes=0)


def test_running_text_trains_too(tmp_path: Path) -> None:
    result = make_trainer(
        tmp_path, TrainingConfig(max_steps=3, accumulate=4), text=True, data=ToyText()
    ).run()
    assert result.tokens == 3 * 6 * 7
