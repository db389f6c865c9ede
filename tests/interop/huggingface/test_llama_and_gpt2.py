"""LLaMA, Mistral, Qwen and GPT-2: published models are ours, and ours are published models."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tests.interop.huggingface.published import VOCAB, all_double, compare, published, round_trip
from transformer import load

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LLAMA3 |= {"original_max_position_embeddings": 64}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, num_attention_heads=12, num_key_value_heads=4),
    "llama, odd heads": LlamaConfig(
        **SIZES, num_attention_heads=3, num_key_value_heads=3, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True, rope_parameters=LLAMA3,
    ),
    "llama, wide heads": LlamaConfig(
        **SIZES, num_attention_heads=3, num_key_value_heads=1, head_dim=14,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    ),
    "mistral": MistralConfig(**SIZES, num_attention_heads=6, num_key_value_heads=2, head_dim=8, sliding_window=17),
    "mistral, no window": MistralConfig(**SIZES, num_attention_heads=6, num_key_value_heads=2, sliding_window=None),
    "qwen2": Qwen2Config(
        **SIZES, num_attention_heads=6, num_key_value_heads=2, use_sliding_window=True, sliding_window=17,
        max_window_layers=1,
    ),
    "qwen2, tied": Qwen2Config(**SIZES, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, num_attention_heads=6, num_key_value_heads=3, head_dim=10),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=3, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
    "gpt2, erf": GPT2Config(
        vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=12, n_positions=128, activation_function="gelu", n_inner=70,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
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


def test_weights_without_the_prefix_are_the_same_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = published(CONFIGS["gpt2"], tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 128, 128).tril()}  # a table that older files hold
    save_file(tensors, path)
    compare(theirs, load(tmp_path), 1e-5)


def test_shards_and_half_precision(tmp_path: Path) -> None:
    theirs = published(CONFIGS["llama"], tmp_path / "whole")
    for parameter in theirs.parameters():
        parameter.data = parameter.data.bfloat16().float()
    deepcopy(theirs).to(torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    ours = load(tmp_path / "shards")
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    compare(theirs, ours, 1e-5)
