"""Likelihoods of whole splits, worked out token by token in NumPy."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transformer.base import Transformer
from transformer.data import ByteConfig, CharacterConfig, TextData, TextEvaluation, prepare_text
from transformer.data.pairs import PairEvaluation, Pairs, Sentences
from transformer.evaluation import Likelihood, TextLikelihood, evaluate_pairs, evaluate_text


class Bigram(nn.Module):
    """Logits that depend on the last token only, so that windows make no difference."""

    def __init__(self, vocab_size: int, spread: float = 2.0) -> None:
        super().__init__()
        self.table = nn.Parameter(spread * torch.randn(vocab_size, vocab_size, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)
        self.n_calls = 0

    def forward(self, tokens: Tensor, *, auxiliary: object = None) -> Tensor:
        assert not torch.is_grad_enabled()
        self.n_calls += 1
        return self.dropout(self.table[tokens])


def surprise(logits: np.ndarray, token: int) -> float:
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token])


@pytest.mark.parametrize(("context", "batch_size"), [(1, 1), (7, 3), (50, 2), (64, 8), (200, 1), (500, 1)])
def test_every_token_of_a_text_counts_once(context: int, batch_size: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 30, 201).astype(np.uint16)
    model = Bigram(30).train()
    table = model.table.detach().numpy()
    expected = sum(surprise(table[a], b) for a, b in pairwise(tokens))
    evaluation = TextEvaluation(tokens, context=context, batch_size=batch_size, n_bytes=333)
    found = evaluate_text(model, evaluation)
    assert found.n_tokens == 200 and model.n_calls == len(evaluation)
    assert found.nll == pytest.approx(expected, rel=1e-12)
    assert found.nats_per_token == pytest.approx(expected / 200)
    assert found.perplexity == pytest.approx(math.exp(expected / 200))
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / 333)
    assert model.training


TEXT = "Größe über 日本語の文章 – naïve 🙂 Äpfel\n"


@pytest.mark.parametrize("tokenizer", [ByteConfig(), CharacterConfig()])
def test_bits_per_byte_counts_the_raw_bytes_of_the_predicted_text(
    tmp_path: Path, tokenizer: ByteConfig | CharacterConfig
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    data = TextData(path=str(tmp_path / "raw" / "text.txt"), tokenizer=tokenizer, context=16, batch_size=4)
    corpus = prepare_text(data, tmp_path / "prepared")
    tokens = corpus.tokens("validation")
    first = corpus.tokenizer.decode(tokens[:1].tolist())
    text = corpus.tokenizer.decode(tokens.tolist())
    by_hand = len(text.encode()) - (1 if isinstance(tokenizer, ByteConfig) else len(first.encode()))
    assert len(text) < len(text.encode())

    class Uniform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(()))

        def forward(self, tokens: Tensor, *, auxiliary: object = None) -> Tensor:
            return torch.zeros(*tokens.shape, corpus.tokenizer.vocab_size)

    found = evaluate_text(Uniform(), corpus.evaluation("validation"))
    assert found.n_bytes == by_hand
    bits = math.log2(corpus.tokenizer.vocab_size) * (len(tokens) - 1)
    assert found.bits_per_byte == pytest.approx(bits / by_hand, rel=1e-6)


def pairs(count: int) -> Pairs:
    generator = np.random.default_rng(1)

    def side() -> Sentences:
        lengths = generator.integers(0, 9, count)
        tokens = generator.integers(3, 20, lengths.sum()).astype(np.uint16)
        return Sentences(tokens, np.concatenate([[0], lengths.cumsum()]).astype(np.uint32))

    return Pairs(side(), side(), pad=0, bos=1, eos=2)


def test_every_target_token_counts_once_whatever_the_batches() -> None:
    split = pairs(41)
    model = Transformer(20, d_model=16, n_heads=2, n_layers=2, dropout=0.3).double().train()
    found = [
        evaluate_pairs(model, PairEvaluation(split, batch_tokens=budget)) for budget in (1, 60, 300, 10_000)
    ]
    assert model.training
    model.eval()
    expected, count = 0.0, 0
    for i in range(41):
        target = [1, *split.target[i], 2]
        with torch.no_grad():
            logits = model(torch.tensor([[*split.source[i], 2]]), torch.tensor([target[:-1]]))[0].numpy()
        expected += sum(surprise(row, token) for row, token in zip(logits, target[1:], strict=True))
        count += len(target) - 1
    for likelihood in found:
        assert likelihood.n_tokens == count == int(split.target.lengths.sum()) + 41
        assert likelihood.nll == pytest.approx(expected, rel=1e-12)


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    assert Likelihood(nll=1e6, n_tokens=10).perplexity == math.inf
    assert TextLikelihood(nll=math.log(2) * 12, n_tokens=3, n_bytes=4).bits_per_byte == pytest.approx(3)
