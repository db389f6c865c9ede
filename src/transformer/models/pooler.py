"""One vector for a whole sequence, from its hidden states.

    pool(h) = tanh(h[first] W + b)     (BERT, arXiv 1810.04805 §3: the token [CLS] stands first)
    mean_pool(h) = Σ h[real] / n       (Sentence-BERT, arXiv 1908.10084 §3)

Cost: d² multiplications a sequence for the first, d additions a token for the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..base.sockets import Config


class Pooler(nn.Module):
    """BERT's vector of a sequence: its first real token, through a linear map and tanh."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)

    def forward(
        self,
        hidden: Float[Tensor, "b t d"],
        attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Return one vector for each row; padding may stand on either side."""
        if attention_mask is None:
            return torch.tanh(self.dense(hidden[:, 0]))
        rows = torch.arange(len(hidden), device=hidden.device)
        return torch.tanh(self.dense(hidden[rows, attention_mask.int().argmax(1)]))


class MeanPooler(Pooler):
    """The mean of the real tokens, through BERT's linear map and tanh.

    For encoders that were trained without a token that stands for the sequence: nothing has taught them to gather it
    in their first one.
    """

    def forward(
        self,
        hidden: Float[Tensor, "b t d"],
        attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Return one vector for each row."""
        return torch.tanh(self.dense(mean_pool(hidden, attention_mask)))


class NoPooler(nn.Module):
    """No pooler, in a model that was trained without."""

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> NoReturn:
        """Refuse."""
        raise ValueError("this model has no pooler; use models.pooler.mean_pool, or build it with one")


def mean_pool(
    hidden: Float[Tensor, "b t d"],
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b d"]:
    """Return the mean of the hidden states of each row's real tokens; zeros for a row that has none."""
    if attention_mask is None:
        return hidden.mean(1)
    weights = attention_mask.to(hidden.dtype)
    total = torch.einsum("btd,bt->bd", hidden, weights)
    return total / weights.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class PoolerConfig(Config):
    """BERT's pooler, as data."""

    kind: ClassVar[str] = "pooler"

    def build(self, d_model: int) -> Pooler:
        return Pooler(d_model)


@dataclass(frozen=True)
class MeanPoolerConfig(PoolerConfig):
    """The mean through BERT's map, as data."""

    kind: ClassVar[str] = "mean_pooler"

    def build(self, d_model: int) -> MeanPooler:
        return MeanPooler(d_model)


@dataclass(frozen=True)
class NoPoolerConfig(Config):
    """No pooler, as data."""

    kind: ClassVar[str] = "no_pooler"

    def build(self, d_model: int) -> NoPooler:
        return NoPooler()
