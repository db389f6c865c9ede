"""What is reported of encoders: guesses at hidden tokens, and classes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from transformer.data import ByteConfig, LabelledData, MaskedEvaluation, Masking, TextEvaluation
from transformer.evaluation import evaluate_classes, evaluate_masked, report_classes, score_predictions
from transformer.models import BERT

MASKING = Masking(40, 4, (0, 1, 2, 3))


def evaluation(batch_size: int, n: int = 1000) -> MaskedEvaluation:
    tokens = np.random.default_rng(0).integers(5, 40, n).astype(np.uint16)
    windows = TextEvaluation(tokens, context=30, batch_size=batch_size, n_bytes=n)
    return MaskedEvaluation(windows, MASKING, frame=(1, 2))


def test_every_token_is_read_once_and_the_same_are_hidden_however_it_is_cut() -> None:
    batches = list(evaluation(7).batches())
    assert sum(int((batch.labels >= 5).sum()) for batch in batches) == 999
    assert all((batch.labels[:, 0] == 1).all() and (batch.labels[:, -1] == 2).all() for batch in batches)
    assert batches[0].labels.shape[1] == 32
    places = {tuple(row) for batch in batches[:-1] for row in batch.chosen.tolist()}
    assert len(places) > 30, "each window hides others"
    torch.manual_seed(0)
    model = BERT(vocab_size=40, d_model=24, n_heads=2, n_layers=1, max_seq_len=32)
    one, other = (evaluate_masked(model, evaluation(size).batches()) for size in (7, 50))
    assert one.n_tokens == other.n_tokens == sum(round(0.15 * n) for n in [30] * 33 + [9])
    assert one.n_right == other.n_right and one.nll == pytest.approx(other.nll, rel=1e-5)


def test_loss_and_accuracy_by_hand() -> None:
    torch.manual_seed(0)
    model = BERT(vocab_size=40, d_model=24, n_heads=2, n_layers=1, max_seq_len=32).eval()
    nll, right = 0.0, 0
    with torch.no_grad():
        for batch in evaluation(7).batches():
            logits = model(batch.tokens).double().log_softmax(-1)
            for row, column in batch.chosen.nonzero().tolist():
                label = int(batch.labels[row, column])
                nll -= float(logits[row, column, label])
                right += int(logits[row, column].argmax()) == label
    found = evaluate_masked(model, evaluation(7).batches())
    assert found.nll == pytest.approx(nll, rel=1e-5) and found.n_right == right
    assert found.accuracy == right / found.n_tokens
    assert found.perplexity == pytest.approx(math.exp(nll / found.n_tokens), rel=1e-4)


class Odd(nn.Module):
    """Says of a text whether its first token is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return F.one_hot(tokens[:, 1] % 2, 2) * self.weight


def test_predictions_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = ["abcdef"[rng.integers(6)] + "x" * int(rng.integers(30)) for _ in range(50)]
    lines = [f"{text}\t{int(rng.integers(2))}\n" for text in texts]
    (tmp_path / "train.tsv").write_text("".join(lines))
    data = LabelledData(str(tmp_path), validation=None, tokenizer=ByteConfig(), batch_size=8)
    corpus = data.load()
    examples = corpus.examples("train")
    found = evaluate_classes(Odd(), corpus.evaluation("train"), 2)
    expected = [examples.texts[i][0] % 2 for i in range(len(examples))]
    assert found.predictions.tolist() == expected
    assert found.accuracy == np.mean(np.array(expected) == examples.labels)
    report = report_classes(Odd(), corpus, "train", samples=5)
    for example in report.examples:
        assert example.hypothesis == str((ord(example.source[0]) + 3) % 2)
    places = [texts.index(example.source) for example in report.examples]
    assert places == sorted(places), "examples are spread over the file"


def test_macro_f1_by_hand() -> None:
    given, wanted = [0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 0, 0]
    f1 = [2 * 1 / (2 * 1 + 1 + 2), 2 * 2 / (2 * 2 + 0 + 1), 2 * 1 / (2 * 1 + 2 + 0), 0.0]
    accuracy, macro = score_predictions(given, wanted, 4)
    assert accuracy == pytest.approx(4 / 7) and macro == pytest.approx(sum(f1) / 4)
    assert score_predictions([1, 1], [1, 1], 2) == (1.0, 0.5)
