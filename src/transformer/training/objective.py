"""Training objectives: what a batch costs a model. They live outside the models, which only give logits."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..base import AuxiliaryLosses
from ..data import LabelledBatch, MaskedBatch, Masking, PairBatch, TextBatch, Tokenizer
from ..data.synthetic import AnswerBatch
from .cross_entropy import SmoothedCrossEntropy

Smoothing = Literal["uniform", "exclude_gold_and_pad", "wrong_classes"]
B_contra = TypeVar("B_contra", contravariant=True)

MASK = "⟨mask⟩"  # the name of the token that stands where another one is hidden
IGNORED = -100  # the label of a position that does not count


@dataclass(frozen=True)
class LossSum:
    """The loss of one batch as a sum over its counted targets, so that sums of micro-batches add up.

    total: scalar to differentiate, with smoothing and auxiliary losses; count: number of counted targets;
    nll: scalar, the plain negative log-likelihood in nats, detached. `nll / count` is comparable between
    runs with different smoothing, `total / count` is not.
    """

    total: Tensor
    count: int
    nll: Tensor


@runtime_checkable
class Objective(Protocol[B_contra]):
    """The socket between the training loop and a way of training."""

    def count(self, batch: B_contra) -> int:
        """Return how many targets of `batch` count, without running the model."""

    def __call__(self, model: nn.Module, batch: B_contra) -> LossSum:
        """Return the summed loss of `model` on `batch`."""


class ObjectiveConfig(Objective[Any]):
    """An objective that a configuration can name: its settings are data."""

    kind: ClassVar[str]

    @abstractmethod
    def blank(self, rows: int, length: int, source_length: int = 0) -> Any:
        """Return a batch of zeros that asks for `length` targets in each row; of pairs, with a source so long."""


@dataclass(frozen=True)
class SequenceToSequence(ObjectiveConfig):
    """Predict each target token from the source and the target tokens before it, with label smoothing.

    label_smoothing: ε, the share of probability moved off the gold token (1706.03762 §5.4: 0.1).
    smoothing: where it goes; the three forms in use are not the same number:

    - `uniform`: ε/V to every token, gold included (1512.00567 §7; the paper's wording; PyTorch);
    - `exclude_gold_and_pad`: ε/(V-2) to all but gold and padding (the Annotated Transformer);
    - `wrong_classes`: ε/(V-1) to all but gold (fairseq).

    pad_id: the padding token; only `exclude_gold_and_pad` looks at it.
    """

    kind: ClassVar[str] = "sequence_to_sequence"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    smoothing: Smoothing = "uniform"
    pad_id: Annotated[int, Ge(0)] = 0

    def blank(self, rows: int, length: int, source_length: int = 0) -> PairBatch:
        source, target = _zeros(rows, source_length or length), _zeros(rows, length + 1)
        return PairBatch(source, torch.ones_like(source).bool(), target, torch.ones_like(target).bool())

    def count(self, batch: PairBatch) -> int:
        return int(batch.target_mask[:, 1:].sum())

    def __call__(self, model: nn.Module, batch: PairBatch) -> LossSum:
        auxiliary = AuxiliaryLosses()
        logits = model(batch.source, batch.target[:, :-1], batch.source_mask, auxiliary=auxiliary)
        counted = batch.target_mask[:, 1:]
        total, nll = smoothed_cross_entropy(
            logits, batch.target[:, 1:], counted, self.label_smoothing, self.smoothing, self.pad_id
        )
        count = self.count(batch)
        return LossSum(total + count * auxiliary.total(), count, nll)


@dataclass(frozen=True)
class Causal(ObjectiveConfig):
    """Predict each token of running text from the tokens before it."""

    kind: ClassVar[str] = "causal"

    def blank(self, rows: int, length: int, source_length: int = 0) -> TextBatch:
        return TextBatch(_zeros(rows, length + 1))

    def count(self, batch: TextBatch) -> int:
        return batch.tokens[:, 1:].numel()

    def __call__(self, model: nn.Module, batch: TextBatch) -> LossSum:
        auxiliary = AuxiliaryLosses()
        logits = model(batch.tokens[:, :-1], auxiliary=auxiliary)
        labels = batch.tokens[:, 1:]
        total, nll = smoothed_cross_entropy(logits, labels, torch.ones_like(labels, dtype=torch.bool), 0.0)
        count = self.count(batch)
        return LossSum(total + count * auxiliary.total(), count, nll)


@dataclass(frozen=True)
class Answers(ObjectiveConfig):
    """Tell the answers that a made problem asks for, from the symbols so far; nothing else counts."""

    kind: ClassVar[str] = "answers"

    def blank(self, rows: int, length: int, source_length: int = 0) -> AnswerBatch:
        tokens = _zeros(rows, length)
        return AnswerBatch(tokens, tokens, torch.ones_like(tokens).bool())

    def count(self, batch: AnswerBatch) -> int:
        return int(batch.asked.sum())

    def __call__(self, model: nn.Module, batch: AnswerBatch) -> LossSum:
        auxiliary = AuxiliaryLosses()
        logits = model(batch.tokens, auxiliary=auxiliary)
        total, nll = smoothed_cross_entropy(logits, batch.labels, batch.asked, 0.0)
        count = self.count(batch)
        return LossSum(total + count * auxiliary.total(), count, nll)


@dataclass(frozen=True)
class Masked(ObjectiveConfig):
    """Predict the hidden tokens from those on both sides (BERT, 1810.04805 §3.1, task 1).

    share: of the tokens, that are hidden; masked, random: of the hidden ones, that become the mask token, or any other;
    the rest stay as they are. The model is an encoder. Its map to logits is applied to the hidden tokens only: with
    15 % of them hidden, a seventh of its cost and of the memory of the logits.
    """

    kind: ClassVar[str] = "masked"
    share: Annotated[float, Gt(0), Le(1)] = 0.15
    masked: Annotated[float, Ge(0), Le(1)] = 0.8
    random: Annotated[float, Ge(0), Le(1)] = 0.1

    def __post_init__(self) -> None:
        Masking(2, 0, (), self.share, self.masked, self.random)  # refuses shares that do not add up

    def masking(self, tokenizer: Tokenizer) -> Masking:
        """Return how the tokens of this tokenizer are hidden."""
        shares = self.share, self.masked, self.random
        return Masking(tokenizer.vocab_size, tokenizer.special(MASK), tokenizer.special_ids, *shares)

    def blank(self, rows: int, length: int, source_length: int = 0) -> MaskedBatch:
        tokens, everywhere = _zeros(rows, length), torch.ones(rows, length, dtype=torch.bool)
        return MaskedBatch(tokens, tokens, everywhere, everywhere)

    def count(self, batch: MaskedBatch) -> int:
        return int(batch.chosen.sum())

    def __call__(self, model: nn.Module, batch: MaskedBatch) -> LossSum:
        auxiliary, encoder = AuxiliaryLosses(), _encoder(model)
        hidden = encoder.encode(batch.tokens, attention_mask=batch.real, auxiliary=auxiliary)
        chosen = batch.chosen.flatten()
        logits = encoder.lm_head(hidden.flatten(0, 1)[chosen][None])
        labels = batch.labels.flatten()[chosen][None]
        total, nll = smoothed_cross_entropy(logits, labels, torch.ones_like(labels, dtype=torch.bool), 0.0)
        count = self.count(batch)
        return LossSum(total + count * auxiliary.total(), count, nll)


@dataclass(frozen=True)
class Classification(ObjectiveConfig):
    """Tell the class of a text (BERT, 1810.04805 §4.1). label_smoothing: ε, spread evenly over the classes."""

    kind: ClassVar[str] = "classification"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0

    def blank(self, rows: int, length: int, source_length: int = 0) -> LabelledBatch:
        tokens = _zeros(rows, length)
        return LabelledBatch(tokens, torch.ones_like(tokens).bool(), tokens[:, 0])

    def count(self, batch: LabelledBatch) -> int:
        return len(batch.labels)

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> LossSum:
        auxiliary = AuxiliaryLosses()
        scores = model(batch.tokens, attention_mask=batch.real, auxiliary=auxiliary)[None]
        labels = batch.labels[None]
        counted = torch.ones_like(labels, dtype=torch.bool)
        total, nll = smoothed_cross_entropy(scores, labels, counted, self.label_smoothing)
        count = self.count(batch)
        return LossSum(total + count * auxiliary.total(), count, nll)


def _encoder(model: nn.Module) -> Any:
    """The model, if hidden tokens can be asked of it."""
    if not hasattr(model, "encode") or not hasattr(model, "lm_head") or hasattr(model, "decoder"):
        raise ValueError(
            f"the objective 'masked' trains an encoder, such as BERT, and {type(model).__name__} is none; "
            "choose 'causal' or 'sequence_to_sequence'"
        )
    return model


def _zeros(rows: int, length: int) -> Int[Tensor, "b t"]:
    return torch.zeros(rows, length, dtype=torch.long)


def smoothed_cross_entropy(
    logits: Float[Tensor, "b t v"],
    labels: Int[Tensor, "b t"],
    counted: Bool[Tensor, "b t"],
    label_smoothing: float,
    smoothing: Smoothing = "uniform",
    pad_id: int = 0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return (smoothed loss, detached plain NLL), each summed over the `counted` positions, in nats.

    The `uniform` form is what `SmoothedCrossEntropy` computes; the others are it with another ε and a term linear
    in the logits:

    - wrong_classes: ε' = ε·V/(V-1);
    - exclude_gold_and_pad: ε' = ε·V/(V-2), plus ε/(V-2)·(z_pad - z_gold).

    No counted position at all gives a loss of 0 with gradient 0.
    """
    vocab_size = logits.shape[-1]
    spread_over = vocab_size - {"uniform": 0, "wrong_classes": 1, "exclude_gold_and_pad": 2}[smoothing]
    epsilon = label_smoothing * vocab_size / spread_over
    targets = labels.masked_fill(~counted, IGNORED).flatten()
    total, nll = SmoothedCrossEntropy.apply(logits.flatten(0, 1), targets, epsilon)  # type: ignore[no-untyped-call]
    if smoothing == "exclude_gold_and_pad" and label_smoothing:
        gold = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        excluded = (logits[..., pad_id] - gold).to(total.dtype).where(counted, 0).sum()
        total = total + label_smoothing / spread_over * excluded
    return total, nll
