"""OLMo, OLMo 2, Granite and SmolLM: published models are ours, and ours are published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GraniteConfig, Olmo2Config, OlmoConfig

from tests.interop.huggingface.published import VOCAB, all_double, compare, published, round_trip
from transformer import load
from transformer.interop.huggingface import FAMILIES
from transformer.interop.huggingface.attributes import Attributes
from transformer.models import llama

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
}  # fmt: skip
MANY: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 4}
THREE: dict[str, Any] = {"num_attention_heads": 3, "num_key_value_heads": 3}
CONFIGS: dict[str, Any] = {
    "olmo": OlmoConfig(**SIZES, **MANY),
    "olmo, tied": OlmoConfig(**SIZES, **THREE, tie_word_embeddings=True, attention_bias=True),
    "olmo2": Olmo2Config(**SIZES, **MANY),
    "olmo2, tied": Olmo2Config(
        **SIZES, **THREE, tie_word_embeddings=True, attention_bias=True, rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    ),
    "granite": GraniteConfig(
        **SIZES, **MANY, embedding_multiplier=12.0, attention_multiplier=0.3, residual_multiplier=0.22,
        logits_scaling=3.7,
    ),
    "granite, tied": GraniteConfig(
        **SIZES, **THREE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, logits_scaling=49,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_model_is_ours_and_ours_is_one(name: str, tmp_path: Path) -> None:
    theirs = published(CONFIGS[name], tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    compare(theirs, ours, 1e-5)
    round_trip(theirs, ours, tmp_path / "ours")


@pytest.mark.parametrize("name", CONFIGS)
def test_in_double_precision_the_two_are_one_function(name: str, tmp_path: Path) -> None:
    with all_double():
        theirs = published(CONFIGS[name], tmp_path, torch.float64)
        compare(theirs, load(tmp_path, dtype=torch.float64), 1e-11)


def config_of(attributes: dict[str, Any]) -> Any:
    return FAMILIES[attributes["model_type"]].read(Attributes(attributes, "config.json"))


OLMO = {
    "model_type": "olmo", "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 1, "vocab_size": 9,
    "intermediate_size": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({**OLMO, "clip_qkv": 8.0}, r"^config.json has clip_qkv 8.0, and only null can be loaded$"),
        (
            {**OLMO, "model_type": "olmo2", "clip_qkv": 8.0},
            r"has the attribute 'clip_qkv', which is not known",
        ),
        (
            {**OLMO, "model_type": "granite", "logits_scaling": 0},
            r"has logits_scaling 0, which must be above 0$",
        ),
    ],
)
def test_what_the_family_cannot_say_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(attributes)


def test_the_divisor_of_the_logits_is_a_short_number_again() -> None:
    """1 / (1 / 49) is not 49 in floating point: what is written must still be read as the same model."""
    assert 1 / (1 / 49) != 49
    config = config_of({**OLMO, "model_type": "granite", "logits_scaling": 49})
    assert FAMILIES["granite"].write(config)["logits_scaling"] == 49.0


def test_smollm_is_a_llama() -> None:
    """The config.json of SmolLM2-135M."""
    attributes = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
        "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
        "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": True, "vocab_size": 49152,
    }  # fmt: skip
    expected = llama(49152, 576, 9, 30, 3, 1536, max_seq_len=8192, rope_base=1e5, tie_embeddings=True)
    assert config_of(attributes) == expected
