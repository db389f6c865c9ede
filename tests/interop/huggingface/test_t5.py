"""T5 and mT5: published models are ours, and ours are published models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MT5Config, T5Config

from tests.interop.huggingface.encoder_decoders import (
    cache_changes_nothing,
    compare,
    published,
    round_trip,
    write_alike,
)
from tests.interop.huggingface.published import VOCAB, all_double
from transformer import T5, Transformer, load
from transformer.interop import to_huggingface
from transformer.interop.huggingface import FAMILIES
from transformer.interop.huggingface.attributes import Attributes
from transformer.models import t5

pytestmark = pytest.mark.shapes_unchecked

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 24,
    "d_ff": 40,
    "num_layers": 2,
    "decoder_start_token_id": 0,
}
CONFIGS: dict[str, tuple[Any, bool]] = {
    "1.0": (T5Config(**SIZES, num_heads=3, d_kv=5, num_decoder_layers=1), False),
    "1.1": (
        T5Config(**SIZES, num_heads=12, d_kv=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False), True
    ),
    "mt5": (MT5Config(**SIZES, num_heads=3, d_kv=8, relative_attention_num_buckets=20), True),
    "tied but not scaled": (
        T5Config(
            **SIZES, num_heads=2, d_kv=8, feed_forward_proj="gated-silu", tie_word_embeddings=False,
            relative_attention_max_distance=50, layer_norm_epsilon=1e-3,
        ),
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_model_is_ours_and_ours_is_one(name: str, tmp_path: Path) -> None:
    config, untied = CONFIGS[name]
    theirs = published(config, tmp_path / "theirs", torch.float32, untied=untied)
    ours = load(tmp_path / "theirs")
    compare(theirs, ours, 1e-5)
    round_trip(theirs, ours, tmp_path / "ours", config.model_type)


@pytest.fixture(scope="module", params=CONFIGS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Theirs and ours, and everything in double precision while they are in use."""
    config, untied = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("model")
    with all_double():
        theirs = published(config, folder, torch.float64, untied=untied)
        yield theirs, load(folder, dtype=torch.float64)


def test_in_double_precision_the_two_are_one_function(models: Any) -> None:
    compare(*models, 1e-11)


def test_greedy_and_beams_write_what_transformers_writes(models: Any) -> None:
    write_alike(*models, bos=0)


def test_a_cache_changes_nothing_at_any_split(models: Any) -> None:
    cache_changes_nothing(models[1])


def test_the_map_to_logits_is_as_it_was_published(tmp_path: Path) -> None:
    """The embedding's own matrix, scaled, in version 1.0; one of its own, not scaled, in 1.1 and mT5."""
    expected = {
        "1.0": (True, 24**-0.5),
        "1.1": (False, 1.0),
        "mt5": (False, 1.0),
        "tied but not scaled": (True, 1.0),
    }
    for name, (config, untied) in CONFIGS.items():
        published(config, tmp_path / name, torch.float32, untied=untied)
        ours: Any = load(tmp_path / name).config
        assert (ours.tie_embeddings, ours.lm_head.scale) == expected[name]


RELEASED: dict[str, dict[str, Any]] = {
    "t5-small": {
        "model_type": "t5", "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
        "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "n_positions": 512, "num_heads": 8, "num_layers": 6,
        "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32, "vocab_size": 32128,
        "task_specific_params": {"summarization": {"early_stopping": True, "length_penalty": 2.0, "num_beams": 4}},
    },
    "flan-t5-base": {
        "model_type": "t5", "d_ff": 2048, "d_kv": 64, "d_model": 768, "dropout_rate": 0.1, "n_positions": 512,
        "feed_forward_proj": "gated-gelu", "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12,
        "relative_attention_max_distance": 128, "tie_word_embeddings": False, "vocab_size": 32128,
        "is_gated_act": True, "dense_act_fn": "gelu_new",
    },
    "byt5-small": {
        "model_type": "t5", "d_ff": 3584, "d_kv": 64, "d_model": 1472, "feed_forward_proj": "gated-gelu",
        "num_decoder_layers": 4, "num_heads": 6, "num_layers": 12, "tie_word_embeddings": False, "vocab_size": 384,
        "tokenizer_class": "ByT5Tokenizer", "gradient_checkpointing": False,
    },
    "mt5-small": {
        "model_type": "mt5", "d_ff": 1024, "d_kv": 64, "d_model": 512, "feed_forward_proj": "gated-gelu",
        "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "tie_word_embeddings": False, "vocab_size": 250112,
        "tokenizer_class": "T5Tokenizer",
    },
}  # fmt: skip
"""What the `config.json` of releases say."""


@pytest.mark.parametrize("name", RELEASED)
def test_the_attributes_of_releases_are_known(name: str) -> None:
    data = RELEASED[name]
    config: Any = FAMILIES[data["model_type"]].read(Attributes(data, "config.json"))
    version = "1.0" if name == "t5-small" else "1.1"
    sizes = (
        data["vocab_size"],
        data["d_model"],
        data["num_heads"],
        data["num_layers"],
        64,
        data["d_ff"],
        0.1,
    )
    model = t5(*sizes, version=version)
    decoder = replace(model.decoder, blocks=model.decoder.blocks[: data.get("num_decoder_layers")])
    assert replace(config, tie_embeddings=version == "1.0") == replace(model, decoder=decoder)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown activation": (
        {"feed_forward_proj": "mish"},
        "feed_forward_proj 'mish', and only gated-gelu, ",
    ),
    "two activations": ({"dense_act_fn": "silu"}, "has dense_act_fn 'silu', and only 'relu'"),
    "a decoder alone": ({"is_decoder": True}, "has is_decoder True, and only False"),
    "odd buckets": ({"relative_attention_num_buckets": 30}, "cannot be built: n_buckets 30 cannot be halved"),
    "UMT5": ({"model_type": "umt5"}, "has model_type 'umt5', which is not known; did you mean 'mt5'"),
    "something new": ({"sliding_window": 7}, "has the attribute 'sliding_window', which is not known for"),
    "more layers than tensors": ({"num_layers": 3}, "has no tensor 'encoder.block.2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_another_model_is_refused(case: str, tmp_path: Path) -> None:
    published(CONFIGS["1.0"][0], tmp_path, torch.float32)
    changes, message = REFUSED[case]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_t5_cannot_express_is_not_written(tmp_path: Path) -> None:
    small: dict[str, Any] = {"vocab_size": 20, "d_model": 12, "n_heads": 2, "n_layers": 1}
    with pytest.raises(ValueError, match="t5: its positions are not T5's biases"):
        to_huggingface(T5(**small, use_rope=True), tmp_path)
    with pytest.raises(ValueError, match="t5: its positions are not T5's biases"):
        to_huggingface(Transformer(**small), tmp_path)
    with pytest.raises(ValueError, match="mt5: it has parts that the family has not"):
        to_huggingface(T5(**small), tmp_path, model_type="mt5")
    assert not list(tmp_path.iterdir())
