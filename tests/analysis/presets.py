"""Training set-ups whose memory is estimated, and measured by running this file: `presets.py NAME` prints bytes.

What is measured is how far the resident memory of the process rises above what it was before the model was built.
The caller sets MALLOC_MMAP_THRESHOLD_, so that the C library gives memory back as soon as it is freed: what it
would keep of it depends on the order of all calls before, and is no property of the model.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from transformer.analysis.cost import Shape
from transformer.base.attention import scaled_dot_product_attention
from transformer.base.sockets import Execution
from transformer.base.transformer import EncoderDecoder, transformer
from transformer.data import PairBatch, TextBatch
from transformer.enhancements import sdpa_attention
from transformer.models import ModelConfig, build, gpt
from transformer.training.average import WeightAverage
from transformer.training.config import TrainingConfig
from transformer.training.objective import Causal, ObjectiveConfig, SequenceToSequence
from transformer.training.optimizer import AdamConfig, AdamWConfig, OptimizerConfig
from transformer.training.step import TrainingStep


@dataclass(frozen=True)
class Preset:
    config: ModelConfig
    shape: Shape
    objective: ObjectiveConfig
    optimizer: OptimizerConfig = AdamWConfig()
    training: TrainingConfig = TrainingConfig()
    execution: Execution = Execution(scaled_dot_product_attention)


PRESETS = {
    "base": Preset(transformer(10000, 256, 4, 3), Shape(128, 32, 32), SequenceToSequence(), AdamConfig()),
    "lean": Preset(
        transformer(10000, 256, 4, 3),
        Shape(128, 32, 24),
        SequenceToSequence(),
        training=TrainingConfig(precision="bfloat16", ema_decay=0.999),
        execution=Execution(sdpa_attention, checkpoint=True),
    ),
    "gpt": Preset(
        gpt(5000, 256, 4, 4, max_seq_len=256), Shape(8, 256), Causal(), training=TrainingConfig(accumulate=2)
    ),
}


def train(preset: Preset, steps: int) -> None:
    """Train on random tokens of the preset's shape, every target counted."""
    model = build(preset.config, preset.execution).train()
    optimizer = preset.optimizer.build(model)
    decay = preset.training.ema_decay
    average = None if decay is None else WeightAverage(model, decay)
    step = TrainingStep(model, preset.objective, optimizer, lambda _: 1e-4, average, preset.training)
    rows, length, width = preset.shape.rows, preset.shape.length, preset.shape.source_length
    for number in range(steps):
        batches = []
        for _ in range(preset.training.accumulate):
            tokens = torch.randint(3, preset.config.vocab_size, (rows, length + 1))
            if isinstance(model, EncoderDecoder):
                source = torch.randint(3, preset.config.vocab_size, (rows, width))
                masks = torch.ones_like(source).bool(), torch.ones_like(tokens).bool()
                batches.append(PairBatch(source, masks[0], tokens, masks[1]))
            else:
                batches.append(TextBatch(tokens))
        assert step(number, batches).problem is None


def resident(line: str) -> int:
    """Bytes of this process as the kernel counts them: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{line}:")[2].split()[0])


def main(name: str) -> None:
    preset = PRESETS[name]
    train(replace(preset, shape=Shape(2, 4, 4)), steps=2)  # load every library and kernel that will be used
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    train(preset, steps=2)
    sys.stdout.write(f"{resident('VmHWM') - before}\n")


if __name__ == "__main__":
    main(sys.argv[1])
