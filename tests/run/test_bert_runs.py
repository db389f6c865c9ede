"""BERT from the command line: trained on hidden tokens, then fine-tuned to classify; stopped, resumed, evaluated."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from transformer.cli import run
from transformer.interop import load, load_tokenizer_of, to_huggingface
from transformer.models import BERT, SequenceClassifier
from transformer.run import build_parts, read_run

pytestmark = pytest.mark.shapes_unchecked

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "far", "away", "today"]
GOOD, BAD = ["good", "great", "fine"], ["bad", "awful", "poor"]
BERT_YAML = """
model: {family: bert, d_model: 16, n_heads: 2, n_layers: 2, max_seq_len: 40}
data: {path: text.txt, tokenizer: {kind: bpe, vocab_size: 300}, context: 24, batch_size: 8}
schedule: {kind: constant, learning_rate: 1.0e-3}
training: {max_steps: 6, log_every: 2, evaluate_every: 3, checkpoint_every: 2}
"""
CLASSES_YAML = """
model: {family: bert, d_model: 16, n_heads: 2, n_layers: 2, max_seq_len: 40}
data: {kind: labelled, path: reviews, batch_size: 16}
schedule: {kind: constant, learning_rate: 3.0e-3}
training: {max_steps: 8, log_every: 2, evaluate_every: 4, checkpoint_every: 4}
"""


def write_reviews(folder: Path) -> None:
    rng = random.Random(0)
    folder.mkdir()
    for name, size in (("train", 160), ("dev", 40)):
        lines = ["sentence\tlabel\n"]
        for _ in range(size):
            label = rng.randrange(2)
            words = [*rng.choices(WORDS, k=rng.randrange(1, 6)), rng.choice(GOOD if label else BAD)]
            lines.append(f"{' '.join(words)} \t{label}\n")
        (folder / f"{name}.tsv").write_text("".join(lines))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, the configurations and a run of masked-token training."""
    place = tmp_path_factory.mktemp("bert")
    write_reviews(place / "reviews")
    rng = random.Random(0)
    text = "".join(" ".join(rng.choices(WORDS, k=12)) + "\n" for _ in range(200))
    (place / "text.txt").write_text(text)
    (place / "bert.yaml").write_text(BERT_YAML)
    (place / "classes.yaml").write_text(CLASSES_YAML)
    (place / "parallel.yaml").write_text("model: {family: bert}\ndata: {kind: parallel}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(["train", "--config", "bert.yaml", "--output.dir", "bert", "--quiet"]) == 0
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_masked_training_reports_loss_and_accuracy(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((place / "bert" / "results.json").read_text())
    assert {"validation/nll", "validation/perplexity", "validation/accuracy", "val/loss"} <= results.keys()
    assert results["validation/nll"] == pytest.approx(results["val/loss"])
    assert run(["evaluate", "bert"]) == 0
    said = capsys.readouterr().out
    assert f"{results['validation/nll']:.4f}" in said and "the same at every evaluation" in said
    tokenizer = load_tokenizer_of("bert")
    assert load("bert").config.vocab_size == tokenizer.vocab_size == tokenizer.special("⟨mask⟩") + 1
    records = [json.loads(line) for line in (place / "bert" / "metrics.jsonl").read_text().splitlines()]
    assert any("→" in record.get("sample", "") for record in records)


@pytest.mark.parametrize(
    ("config", "more"), [("bert.yaml", []), ("classes.yaml", ["--model.init_from", "bert"])]
)
def test_a_stopped_run_goes_on_bit_for_bit(place: Path, config: str, more: list[str]) -> None:
    whole = ["train", "--config", config, "--output.dir", "whole", "--quiet", *more]
    assert run([*whole, "--training.max_steps", "6"]) == 0
    parts = ["train", "--config", config, "--output.dir", "parts", "--quiet", *more]
    assert run([*parts, "--training.max_steps", "4"]) == 0
    assert run(["train", "--config", "parts/config.yaml", "--training.max_steps", "6", "--quiet"]) == 0
    one, other = (load(f"{name}/export/checkpoints/step-00000006") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_fine_tuning(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = ["train", "--config", "classes.yaml", "--model.init_from", "bert", "--output.dir", "tuned"]
    assert run([*tune, "--training.max_steps", "40"]) == 0
    assert "class  " in capsys.readouterr().out
    results = json.loads((place / "tuned" / "results.json").read_text())
    assert results["validation/accuracy"] > 0.9 and results["validation/macro_f1"] > 0.9
    shutil.rmtree("bert")  # a fine-tuned run stands by itself
    assert run(["evaluate", "tuned"]) == 0
    assert f"{results['validation/accuracy']:.4f}" in capsys.readouterr().out
    model = load("tuned")
    assert isinstance(model, SequenceClassifier) and model.config.classes == ("0", "1")
    with pytest.raises(ValueError, match="no published family has this architecture"):
        to_huggingface(model, place / "theirs")
    (place / "reviews" / "train.tsv").write_text("good\tyes\nbad\tno\n" * 9)
    (place / "reviews" / "dev.tsv").write_text("good\tyes\n")
    assert run(["evaluate", "tuned"]) == 2
    assert "the model tells 0, 1 apart, and the data's classes are no, yes" in capsys.readouterr().err


def test_windows_stand_between_bos_and_eos_and_fill_the_context(place: Path) -> None:
    parts = build_parts(read_run(["bert.yaml"])[0])
    tokenizer, stream = parts.corpus.tokenizer, parts.task.stream(parts.corpus, parts.objective, 0)
    special = torch.tensor(tokenizer.special_ids)
    masked = 0
    for step in range(30):
        batch = stream.batch(step)
        assert batch.tokens.shape == (8, 24)
        assert (batch.tokens[:, 0] == tokenizer.bos).all() and (batch.tokens[:, -1] == tokenizer.eos).all()
        assert not torch.isin(batch.labels[batch.chosen], special).any()
        assert (batch.chosen.sum(1) == round(0.15 * 22)).all()
        masked += int((batch.tokens == tokenizer.special("⟨mask⟩")).sum())
    assert 0.7 < masked / (30 * 8 * 3) < 0.9


def test_the_encoder_is_taken_over_and_the_top_is_new(place: Path) -> None:
    config, _ = read_run(["classes.yaml"], ["--model.init_from", "bert"])
    plain, _ = read_run(
        ["classes.yaml"],
        [
            "--data.tokenizer.kind",
            "saved",
            "--data.tokenizer.path",
            "bert/export/checkpoints/step-00000006/tokenizer.json",
        ],
    )
    begun, fresh, source = build_parts(config), build_parts(plain), load("bert").state_dict()
    tuned = begun.model.encoder.state_dict()
    assert all(torch.equal(tuned[name], source[name]) for name in source if not name.startswith("lm_head."))
    ours, theirs = begun.model.state_dict(), fresh.model.state_dict()
    new = [name for name in ours if torch.equal(ours[name], theirs[name]) and ours[name].abs().sum()]
    assert {"score.weight", "encoder.pooler.dense.weight"} <= set(new), "the first weights are the seed's"
    assert begun.fingerprints() != fresh.fingerprints()
    assert "init_from" not in fresh.fingerprints()["config"] and "beginning" in begun.fingerprints()


def test_it_begins_from_published_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    vocab_size = load_tokenizer_of("bert").vocab_size
    to_huggingface(BERT(vocab_size, 16, 2, 2, max_seq_len=40), place / "theirs")
    tune = [
        "train",
        "--config",
        "classes.yaml",
        "--model.init_from",
        "theirs",
        "--output.dir",
        "t",
        "--quiet",
    ]
    assert run(tune) == 2
    assert "the tokenizer of theirs cannot be read here; set data.tokenizer" in capsys.readouterr().err
    assert run([*tune, "--data.tokenizer.kind", "byte"]) == 2
    assert f"its vocab_size is {vocab_size} and this model's is 259" in capsys.readouterr().err
    saved = place / "bert" / "export" / "checkpoints" / "step-00000006" / "tokenizer.json"
    assert run([*tune, "--data.tokenizer.kind", "saved", "--data.tokenizer.path", str(saved)]) == 0


BEGUN = ["classes.yaml", "--model.init_from", "bert"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["classes.yaml", "--model.init_from", "bart"],
            "model (--model.init_from): bart does not exist; did you mean 'bert'?",
        ),
        ([*BEGUN, "--model.n_heads", "4"], "its stack.blocks[0].mixer.n_heads is 2 and this model's is 4"),
        ([*BEGUN, "--model.n_layers", "3"], "its stack.blocks is 2 long and this model's is 3 long"),
        ([*BEGUN, "--model.d_model", "32"], "its d_model is 16 and this model's is 32"),
        (
            [*BEGUN, "--data.tokenizer.kind", "byte"],
            "it was trained with another tokenizer (301 tokens) than this run's (259)",
        ),
        (["classes.yaml", "--objective.kind", "masked"], "objective.kind masked does not fit labelled data"),
        (["classes.yaml", "--model.family", "gpt"], "model.family gpt reads text or"),
        (["parallel.yaml"], "model.family bert reads text or labelled data, but data.kind is parallel"),
        (
            ["bert.yaml", "--data.context", "2"],
            "context 2 leaves no room for a token between bos and eos; set data.context: 3 or more",
        ),
        (["bert.yaml", "--data.context", "41"], "max_seq_len 40 is less than the 41 tokens of the longest"),
        (["bert.yaml", "--objective.masked", "0.95"], "masked 0.95 and random 0.1 are shares of the same"),
    ],
)
def test_a_mistake_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run(["train", "--output.dir", "new", "--config", *arguments]) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1, said


def test_inspect_and_what_does_not_fit_a_classifier(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config in ("bert.yaml", "classes.yaml"):
        assert run(["inspect", "--config", config]) == 0
        said = capsys.readouterr().out
        assert "FLOPs per token" in said and "training memory" in said
    assert "sequence_classifier (classes ('0', '1')" in said
    assert run(["evaluate", "bert", "--data.kind", "labelled", "--data.path", "reviews"]) == 2
    assert "kind encoder_only cannot be evaluated on labelled data" in capsys.readouterr().err
