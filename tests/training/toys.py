"""A model, data and a trainer small enough to run whole trainings inside a test."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from transformer.base import AuxiliaryLosses
from transformer.data import PairBatch, TextBatch
from transformer.training.config import TrainingConfig
from transformer.training.loop import Trainer
from transformer.training.metrics import read_metrics, reproducible
from transformer.training.objective import Causal, SequenceToSequence
from transformer.training.optimizer import AdamWConfig, optimizer_tensors
from transformer.training.progress import Progress
from transformer.training.schedule import Constant

VOCAB = 13
WIDTH = 8


class ToyModel(nn.Module):
    """One of each layer kind, with the call signature of the encoder-decoder and tied embeddings."""

    def __init__(self, *, dropout: float = 0.1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.mixer = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.expand = nn.Linear(WIDTH, 2 * WIDTH)
        self.activation = nn.GELU()
        self.shrink = nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embedding.weight
        self.to(dtype)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        *,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Tensor:
        assert source_mask is not None
        kept = self.embedding(source) * source_mask.unsqueeze(-1)
        memory = kept.sum(1, keepdim=True) / source_mask.sum(1)[:, None, None]
        return self.decode(self.embedding(target) + memory)

    def decode(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.mixer(hidden)[0]
        hidden = hidden + self.dropout(self.shrink(self.activation(self.expand(hidden))))
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class ToyLanguageModel(ToyModel):
    """The same parts with the call signature of a decoder."""

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Tensor:
        return self.decode(self.embedding(tokens))


@dataclass(frozen=True)
class ToyPairs:
    """Ragged pairs; row r of a step is the same however the step is split into parts."""

    seed: int = 0
    rows: int = 6
    before: Callable[[int], None] = lambda step: None

    def batch(self, step: int, part: int = 0, parts: int = 1) -> PairBatch:
        self.before(step)
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        source = torch.randint(3, VOCAB, (self.rows, 5), generator=generator)
        target = torch.randint(3, VOCAB, (self.rows, 9), generator=generator)
        lengths = torch.randint(2, 10, (self.rows,), generator=generator)
        mask = torch.arange(9) < lengths[:, None]
        rows = slice(part * self.rows // parts, (part + 1) * self.rows // parts)
        whole = torch.ones(self.rows, 5, dtype=torch.bool)
        return PairBatch(
            source[rows], whole[rows], target[rows].where(mask[rows], torch.tensor(0)), mask[rows]
        )


@dataclass(frozen=True)
class ToyText:
    """Random running text."""

    seed: int = 0
    rows: int = 6
    before: Callable[[int], None] = lambda step: None

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TextBatch:
        self.before(step)
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        tokens = torch.randint(0, VOCAB, (self.rows, 8), generator=generator)
        return TextBatch(tokens[part * self.rows // parts : (part + 1) * self.rows // parts])


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()), "quiet")


def make_trainer(folder: Path, config: TrainingConfig, *, text: bool = False, **changes: Any) -> Trainer[Any]:
    """Return a trainer over the toys; `changes` replace its arguments."""
    torch.manual_seed(config.seed)
    arguments: dict[str, Any] = {
        "model": ToyLanguageModel() if text else ToyModel(),
        "objective": Causal() if text else SequenceToSequence(),
        "optimizer": AdamWConfig(),
        "schedule": Constant(1e-2).build(d_model=WIDTH, max_steps=config.max_steps),
        "data": ToyText() if text else ToyPairs(),
        "progress": quiet(),
    }
    return Trainer(config=config, folder=folder, **{**arguments, **changes})


def snapshot(trainer: Trainer[Any]) -> dict[str, Tensor]:
    """Return a copy of every tensor that training changes."""
    tensors = {f"model.{name}": t for name, t in trainer.model.state_dict().items()}
    tensors |= {f"optimizer.{name}": t for name, t in optimizer_tensors(trainer.optimizer).items()}
    if trainer.average:
        tensors |= {f"ema.{name}": t for name, t in trainer.average.tensors.items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return the names whose tensors are not equal bit for bit."""
    names = first.keys() | second.keys()
    return sorted(
        n for n in names if n not in first or n not in second or not torch.equal(first[n], second[n])
    )


def lasting_metrics(folder: Path) -> list[dict[str, Any]]:
    return [reproducible(record) for record in read_metrics(folder / "metrics.jsonl")]


def probe(model: nn.Module, step: int) -> dict[str, float]:
    """An evaluation that depends on every weight, and that uses up random numbers as evaluations may."""
    torch.rand(7)
    return {"val/loss": float(sum(p.double().abs().sum() for p in model.parameters()))}
