"""The objective of a classifier: each text's own loss, whatever stands beside it in the batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from transformer.base.wiring import Dropout
from transformer.data import LabelledBatch
from transformer.models import BERT, SequenceClassifier, SequenceClassifierConfig, bert, build, classifier
from transformer.training.objective import Classification


def model() -> SequenceClassifier:
    torch.manual_seed(0)
    made = build(classifier(bert(50, 24, 2, 2, max_seq_len=20), ("a", "b", "c"))).double().eval()
    assert isinstance(made, SequenceClassifier)
    torch.nn.init.normal_(made.score.weight)
    return made


def test_the_loss_is_that_of_each_text_alone() -> None:
    made, generator = model(), torch.Generator().manual_seed(0)
    lengths, labels = torch.tensor([12, 3, 7, 1]), torch.tensor([0, 2, 1, 2])
    tokens = torch.randint(3, 50, (4, 12), generator=generator)
    real = torch.arange(12) < lengths[:, None]
    batch = LabelledBatch(tokens.masked_fill(~real, 0), real, labels)
    found = Classification()(made, batch)
    scores = [made(row[None, :n]) for row, n in zip(tokens, lengths.tolist(), strict=True)]
    alone = [F.cross_entropy(s, label[None]) for s, label in zip(scores, labels, strict=True)]
    assert found.total.item() == pytest.approx(sum(alone).item(), abs=1e-11)  # type: ignore[union-attr]
    assert found.nll.item() == pytest.approx(found.total.item()) and found.count == 4
    smooth = Classification(label_smoothing=0.3)(made, batch)
    wanted = F.cross_entropy(torch.cat(scores), labels, label_smoothing=0.3, reduction="sum")
    assert smooth.total.item() == pytest.approx(wanted.item(), abs=1e-11)
    assert smooth.nll.item() == pytest.approx(found.nll.item(), abs=1e-11)


def test_a_classifier_is_its_encoder_with_a_pooler_and_a_map() -> None:
    made = model()
    config = made.config
    assert isinstance(config, SequenceClassifierConfig) and config.classes == ("a", "b", "c")
    assert (config.d_model, config.vocab_size, config.tie_embeddings) == (24, 50, False)
    assert [name for name, _ in made.named_children()] == ["encoder", "dropout", "score"]
    assert not any(name.startswith("encoder.lm_head") for name in made.state_dict())
    assert config.dropout == 0.1 and isinstance(made.dropout, Dropout)
    by_hand = SequenceClassifier(BERT(50, 24, 2, 2, max_seq_len=20), 2)
    assert by_hand.config.classes == ("0", "1")
