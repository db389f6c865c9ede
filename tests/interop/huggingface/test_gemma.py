"""Gemma, Gemma 2 and the text models of Gemma 3: published models are ours, and ours are published models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig

from tests.interop.huggingface.published import VOCAB, all_double, compare, published, round_trip
from transformer import load
from transformer.enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from transformer.interop.huggingface import FAMILIES
from transformer.interop.huggingface.attributes import Attributes

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
}  # fmt: skip
HEADS: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
ONE: dict[str, Any] = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
CONFIGS: dict[str, Any] = {
    "gemma": GemmaConfig(**SIZES, **HEADS),
    "gemma, one head of keys, untied": GemmaConfig(**SIZES, **ONE, tie_word_embeddings=False, attention_bias=True),
    "gemma2": Gemma2Config(
        **SIZES, **HEADS, query_pre_attn_scalar=7, sliding_window=17, final_logit_softcapping=2.0,
        attn_logit_softcapping=1.5,
    ),
    "gemma2, no caps": Gemma2Config(
        **SIZES, **ONE, query_pre_attn_scalar=16, sliding_window=17, final_logit_softcapping=None,
        attn_logit_softcapping=None, layer_types=["full_attention", "full_attention"],
    ),
    "gemma3": Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 3}, **HEADS, query_pre_attn_scalar=7, sliding_window=17,
        sliding_window_pattern=2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    ),
    "gemma3, capped": Gemma3TextConfig(**SIZES, **ONE, sliding_window=17, final_logit_softcapping=2.0),
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


# ---------------------------------------------------------------- config files as the releases ship them

GEMMA_2B = {
    "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
    "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None, "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma",
    "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA2_27B = {
    "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
    "head_dim": 128, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608, "intermediate_size": 36864, "max_position_embeddings": 8192, "model_type": "gemma2",
    "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16, "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
    "vocab_size": 256000,
}  # fmt: skip
GEMMA3_1B = {
    "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None,
    "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
    "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip


def config_of(attributes: dict[str, Any]) -> Any:
    return FAMILIES[attributes["model_type"]].read(Attributes(attributes, "config.json"))


def test_the_first_release_says_gelu_and_means_the_tanh_form() -> None:
    config = config_of(GEMMA_2B)
    assert {block.feed_forward.activation for block in config.stack.blocks} == {"gelu_tanh"}
    assert config.stack.blocks[0].mixer.d_head is None and config.tie_embeddings


def test_gemma_2_has_a_scale_of_its_own_and_caps_that_are_there_unless_null() -> None:
    config = config_of(GEMMA2_27B)
    windows = [getattr(block.mixer, "window", None) for block in config.stack.blocks]
    assert windows == [4096, None] * 23
    assert config.stack.blocks[0].mixer.scale == 144**-0.5 and config.stack.blocks[0].mixer.d_head == 128
    assert (config.stack.blocks[0].mixer.soft_cap, config.lm_head.soft_cap) == (50.0, 30.0)
    bare = {name: value for name, value in GEMMA2_27B.items() if "softcapping" not in name}
    assert config_of(bare) == config
    uncapped = config_of({**GEMMA2_27B, "final_logit_softcapping": None})
    assert uncapped.lm_head.soft_cap is None and uncapped.stack.blocks[0].mixer.soft_cap == 50.0


def test_gemma_3_turns_by_one_base_near_and_by_another_far() -> None:
    config = config_of(GEMMA3_1B)
    local = [isinstance(block.mixer, SlidingWindowAttentionConfig) for block in config.stack.blocks]
    assert local == [(layer + 1) % 6 > 0 for layer in range(26)]
    assert config.stack.position.base == 1e6
    assert [block.position and block.position.base for block in config.stack.blocks] == [
        1e4 if near else None for near in local
    ]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {**GEMMA3_1B, "attn_logit_softcapping": 50.0},
            r"has attn_logit_softcapping 50.0, and only null can be",
        ),
        (
            {**GEMMA3_1B, "use_bidirectional_attention": True},
            r"has use_bidirectional_attention True, and only",
        ),
        (
            {**GEMMA3_1B, "sliding_window_pattern": 0},
            r"has sliding_window_pattern 0, which must be 1 or more$",
        ),
        ({**GEMMA2_27B, "hidden_activation": "gelu"}, r"has hidden_activation 'gelu', and only"),
        ({**GEMMA2_27B, "layer_types": ["full_attention"]}, r"has layer_types other than full_attention or"),
    ],
)
def test_what_the_family_cannot_say_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(attributes)


def test_older_files_say_gemma_3_in_other_words(tmp_path: Path) -> None:
    published(CONFIGS["gemma3"], tmp_path)
    path = tmp_path / "config.json"
    found = json.loads(path.read_text())
    expected = load(tmp_path).config
    del found["rope_parameters"], found["layer_types"]
    found.pop("_sliding_window_pattern", None)
    found |= {"rope_theta": 5e4, "rope_local_base_freq": 1e3, "sliding_window_pattern": 2}
    found |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    path.write_text(json.dumps(found))
    assert load(tmp_path).config == expected
