"""The score of answers, counted a second time by hand, and the objective that learns them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transformer.data import SyntheticData
from transformer.data.synthetic import AnswerBatch, ModularTask, SortingTask
from transformer.evaluation import evaluate_answers, report_answers
from transformer.models import GPT
from transformer.training.objective import Answers


class Fixed(nn.Module):
    """Says the same logits whatever it reads."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, tokens: Tensor, auxiliary: Any = None) -> Tensor:
        return self.logits.expand(len(tokens), -1, -1)


def problems() -> AnswerBatch:
    labels = torch.tensor([[1, 2, 3], [1, 0, 3]])
    asked = torch.tensor([[True, False, True], [True, True, False]])
    return AnswerBatch(torch.zeros_like(labels), labels, asked)


def test_only_what_is_asked_counts() -> None:
    logits = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[0, 0, 1] += 9  # place 0: told 1; place 1: told 2; place 2: told 3
    logits[0, 1, 2] += 9
    logits[0, 2, 3] += 9
    model, batch = Fixed(logits), problems()
    score = evaluate_answers(model, [batch, batch])
    assert (score.right, score.answers, score.solved, score.problems) == (6, 8, 2, 4)
    chances = np.exp(logits[0].numpy()) / np.exp(logits[0].numpy()).sum(-1, keepdims=True)
    expected = -np.log(chances[0, 1] * chances[2, 3] * chances[0, 1] * chances[1, 0])
    assert score.nll == pytest.approx(2 * expected, rel=1e-12)
    assert score.accuracy == 0.75 and score.solved_share == 0.5 and score.loss == score.nll / 8
    loss = Answers()(model, batch)
    assert loss.count == 4 and loss.nll.item() == pytest.approx(expected, rel=1e-12)
    loss.total.backward()
    gradient = model.logits.grad.numpy()[0]  # the sum over the batch of chances − gold, where asked
    gold = np.zeros((3, 4))
    gold[0, 1], gold[1, 0], gold[2, 3] = 2, 1, 1
    np.testing.assert_allclose(gradient, chances * np.array([[2], [1], [1]]) - gold, atol=1e-12)


def test_a_report_names_each_length_that_is_examined() -> None:
    corpus = SyntheticData(SortingTask(4, 6), lengths=(4, 8), validation_examples=20).load()
    model = GPT(corpus.tokenizer.vocab_size, 16, 2, 1, max_seq_len=16)
    assert set(report_answers(model, corpus, "validation").figures) == {
        "validation/accuracy",
        "validation/solved",
        "validation/loss",
    }
    figures = report_answers(model, corpus, "test").figures
    assert {name.rpartition("/")[0] for name in figures} == {"test/4", "test/8"}


def test_a_small_model_learns_a_table_by_heart() -> None:
    """Addition modulo 5: every answer of the share that is trained on, within seconds."""
    corpus = SyntheticData(ModularTask("add", 5, 0.9), batch_size=22).load()
    torch.manual_seed(0)
    model, stream = GPT(corpus.tokenizer.vocab_size, 64, 4, 1, dropout=0.0, max_seq_len=4), corpus.stream(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(400):
        batch = stream.batch(step)
        loss = Answers()(model, batch)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    evaluation = corpus.evaluation("train")
    assert evaluate_answers(model, evaluation.batches(4)).accuracy == 1.0
