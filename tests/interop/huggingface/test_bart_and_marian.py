"""BART and Marian: published models are ours, and ours are published models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, MarianConfig

from tests.interop.huggingface.encoder_decoders import (
    batch,
    cache_changes_nothing,
    compare,
    published,
    round_trip,
    write_alike,
)
from tests.interop.huggingface.published import VOCAB, all_double
from transformer import Transformer, load
from transformer.interop import to_huggingface
from transformer.interop.huggingface import FAMILIES
from transformer.interop.huggingface.attributes import Attributes

pytestmark = pytest.mark.shapes_unchecked

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 24, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 20, "max_position_embeddings": 160, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "bart": BartConfig(**SIZES, encoder_attention_heads=3, decoder_attention_heads=12),
    "bart, scaled": BartConfig(
        **SIZES, encoder_attention_heads=2, decoder_attention_heads=3, scale_embedding=True, activation_function="relu",
        activation_dropout=0.2, attention_dropout=0.3,
    ),
    "marian": MarianConfig(
        **SIZES, encoder_attention_heads=3, decoder_attention_heads=12, scale_embedding=True,
        activation_function="swish", decoder_start_token_id=0,
    ),
    "marian, not scaled": MarianConfig(
        **SIZES | {"d_model": 18}, encoder_attention_heads=6, decoder_attention_heads=3, decoder_start_token_id=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_model_is_ours_and_ours_is_one(name: str, tmp_path: Path) -> None:
    theirs = published(CONFIGS[name], tmp_path / "theirs", torch.float32)
    ours = load(tmp_path / "theirs")
    compare(theirs, ours, 1e-5, "right")
    round_trip(theirs, ours, tmp_path / "ours", CONFIGS[name].model_type, "right")


@pytest.fixture(scope="module", params=CONFIGS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Theirs and ours, and everything in double precision while they are in use."""
    folder = tmp_path_factory.mktemp("model")
    with all_double():
        theirs = published(CONFIGS[request.param], folder, torch.float64)
        yield theirs, load(folder, dtype=torch.float64)


def test_in_double_precision_the_two_are_one_function(models: Any) -> None:
    compare(*models, 1e-11, "right")


def test_greedy_and_beams_write_what_transformers_writes(models: Any) -> None:
    write_alike(*models, bos=1)


def test_a_cache_changes_nothing_at_any_split(models: Any) -> None:
    cache_changes_nothing(models[1])


def test_a_model_without_a_bias_of_logits_has_none(tmp_path: Path) -> None:
    """`transformers` then has zeros in its place."""
    theirs = published(CONFIGS["bart"], tmp_path, torch.float32)
    theirs.final_logits_bias.zero_()
    path = tmp_path / "model.safetensors"
    save_file(
        {name: x for name, x in load_file(path).items() if name != "final_logits_bias"},
        path,
        {"format": "pt"},
    )
    ours: Any = load(tmp_path)
    assert ours.lm_head.bias is None
    compare(theirs, ours, 1e-5, "right")
    round_trip(theirs, ours, tmp_path / "ours", "bart", "right")


def test_rows_before_the_first_position_do_not_matter(tmp_path: Path) -> None:
    published(CONFIGS["bart"], tmp_path, torch.float32)
    before: Any = load(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for side in ("encoder", "decoder"):
        tensors[f"model.{side}.embed_positions.weight"][:2] = 7.0
    save_file(tensors, path)
    after: Any = load(tmp_path)
    source, mask, target, _ = batch("right")
    assert before.encoder.position.max_seq_len == 160
    assert torch.equal(before(source, target, mask), after(source, target, mask))


RELEASED: dict[str, dict[str, Any]] = {
    "bart-large-cnn": {
        "model_type": "bart", "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "gelu",
        "add_final_layer_norm": False, "attention_dropout": 0.0, "bos_token_id": 0, "classif_dropout": 0.0,
        "classifier_dropout": 0.0, "d_model": 1024, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
        "decoder_layerdrop": 0.0, "decoder_layers": 12, "decoder_start_token_id": 2, "dropout": 0.1,
        "early_stopping": True, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layerdrop": 0.0,
        "encoder_layers": 12, "eos_token_id": 2, "force_bos_token_to_be_generated": True, "forced_bos_token_id": 0,
        "forced_eos_token_id": 2, "gradient_checkpointing": False, "init_std": 0.02, "length_penalty": 2.0,
        "max_length": 142, "max_position_embeddings": 1024, "min_length": 56, "no_repeat_ngram_size": 3,
        "normalize_before": False, "num_beams": 4, "num_hidden_layers": 12, "output_past": True, "pad_token_id": 1,
        "prefix": " ", "scale_embedding": False, "vocab_size": 50264,
    },
    "opus-mt-en-de": {
        "model_type": "marian", "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish",
        "add_bias_logits": False, "add_final_layer_norm": False, "attention_dropout": 0.0, "bad_words_ids": [[58100]],
        "bos_token_id": 0, "classif_dropout": 0.0, "d_model": 512, "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 58100,
        "decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
        "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0, "forced_eos_token_id": 0, "init_std": 0.02,
        "max_length": 512, "max_position_embeddings": 512, "normalize_before": False, "normalize_embedding": False,
        "num_beams": 6, "num_hidden_layers": 6, "pad_token_id": 58100, "scale_embedding": True,
        "share_encoder_decoder_embeddings": True, "static_position_embeddings": True, "vocab_size": 58101,
    },
}  # fmt: skip
"""What the `config.json` of releases say."""


@pytest.mark.parametrize("name", RELEASED)
def test_the_attributes_of_releases_are_known(name: str) -> None:
    data = RELEASED[name]
    config: Any = FAMILIES[data["model_type"]].read(Attributes(data, "config.json"))
    assert (config.vocab_size, config.d_model) == (data["vocab_size"], data["d_model"])
    assert len(config.encoder.blocks) == data["encoder_layers"]
    assert config.embedding.scaled == data["scale_embedding"] and config.lm_head.bias


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "pre-norm": ("bart", {"normalize_before": True}, "normalize_before True, and only False"),
    "more norms": ("bart", {"add_final_layer_norm": True}, "add_final_layer_norm True, and only False"),
    "no norm of embeddings": ("bart", {"normalize_embedding": False}, "normalize_embedding False, and only True"),
    "fixed positions": ("bart", {"static_position_embeddings": True}, "embeddings True, and only False"),
    "untied": ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings False, and only True"),
    "two vocabularies": ("marian", {"decoder_vocab_size": 40}, "decoder_vocab_size 40, and only 50 can be loaded"),
    "two embeddings": (
        "marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings False, and only True",
    ),
    "an unknown activation": ("marian", {"activation_function": "mish"}, "activation_function 'mish', and only relu"),
    "layers in disagreement": ("bart", {"num_hidden_layers": 9}, "num_hidden_layers 9, and only 2 can be loaded"),
    "something new": ("marian", {"sliding_window": 7}, "has the attribute 'sliding_window', which is not known for"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_another_model_is_refused(case: str, tmp_path: Path) -> None:
    name, changes, message = REFUSED[case]
    published(CONFIGS[name], tmp_path, torch.float32)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_they_cannot_express_is_not_written(tmp_path: Path) -> None:
    model = Transformer(vocab_size=20, d_model=12, n_heads=2, n_layers=1)
    with pytest.raises(ValueError, match="bart: its embeddings are not normalized"):
        to_huggingface(model, tmp_path)
    with pytest.raises(ValueError, match="marian: its positions are not sinusoids with all sines first"):
        to_huggingface(model, tmp_path)
    assert not list(tmp_path.iterdir())
