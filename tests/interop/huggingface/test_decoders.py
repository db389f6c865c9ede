"""Eight families of decoders, from GPT-NeoX to StableLM: published models are ours, and ours are published models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    FalconConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    MptConfig,
    OPTConfig,
    PhiConfig,
    StableLmConfig,
)

from tests.interop.huggingface.published import VOCAB, all_double, compare, published, round_trip
from transformer import load
from transformer.interop.huggingface import FAMILIES
from transformer.interop.huggingface.attributes import Attributes

pytestmark = pytest.mark.shapes_unchecked

TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
SIZES = TOKENS | {"hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 128}
NEOX = SIZES | {"intermediate_size": 40}
GPTJ = TOKENS | {"n_embd": 48, "n_layer": 2, "n_positions": 128}
OPT = SIZES | {"ffn_dim": 40, "word_embed_proj_dim": 48}
NEO = TOKENS | {"hidden_size": 48, "num_layers": 3, "max_position_embeddings": 128, "window_size": 17}
MPT = TOKENS | {"d_model": 48, "n_layers": 2, "max_seq_len": 128}
BLOOM = TOKENS | {"hidden_size": 48, "n_layer": 2}
PARTIAL = {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}
CONFIGS: dict[str, Any] = {
    "gpt_neox": GPTNeoXConfig(**NEOX, num_attention_heads=6),
    "gpt_neox, odd heads": GPTNeoXConfig(
        **NEOX, num_attention_heads=3, rope_parameters=PARTIAL, hidden_act="gelu_fast"
    ),
    "gpt_neox, sequential": GPTNeoXConfig(
        **NEOX, num_attention_heads=12, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
        rope_parameters=PARTIAL | {"partial_rotary_factor": 1.0},
    ),
    "gptj": GPTJConfig(**GPTJ, n_head=3, rotary_dim=6),
    "gptj, tied": GPTJConfig(**GPTJ, n_head=6, rotary_dim=8, n_inner=40, tie_word_embeddings=True),
    "opt": OPTConfig(**OPT, num_attention_heads=3),
    "opt, no biases": OPTConfig(
        **OPT, num_attention_heads=12, enable_bias=False, activation_function="gelu", tie_word_embeddings=False
    ),
    "bloom": BloomConfig(**BLOOM, n_head=6),
    "bloom, odd heads": BloomConfig(**BLOOM, n_head=3, tie_word_embeddings=False),
    "bloom, 12 heads": BloomConfig(**BLOOM, n_head=12),
    "gpt_neo": GPTNeoConfig(**NEO, num_heads=3, attention_types=[[["global", "local"], 1], [["local"], 1]]),
    "gpt_neo, untied": GPTNeoConfig(
        **NEO, num_heads=12, attention_types=[[["global"], 3]], intermediate_size=40, tie_word_embeddings=False
    ),
    "falcon": FalconConfig(**SIZES, num_attention_heads=3),
    "falcon, all heads": FalconConfig(**SIZES, num_attention_heads=6, multi_query=False, bias=True, ffn_hidden_size=40),
    "falcon, sequential": FalconConfig(**SIZES, num_attention_heads=6, parallel_attn=False, tie_word_embeddings=False),
    "falcon, new": FalconConfig(**SIZES, num_attention_heads=6, num_kv_heads=2, new_decoder_architecture=True),
    "falcon, new with one norm": FalconConfig(
        **SIZES, num_attention_heads=12, num_kv_heads=4, new_decoder_architecture=True, num_ln_in_parallel_attn=1,
        bias=True,
    ),
    "mpt": MptConfig(**MPT, n_heads=6),
    "mpt, odd heads": MptConfig(**MPT, n_heads=3, tie_word_embeddings=False),
    "mpt, 12 heads": MptConfig(**MPT, n_heads=12),
    "phi": PhiConfig(**NEOX, num_attention_heads=3),
    "phi, grouped": PhiConfig(**NEOX, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True),
    "stablelm": StableLmConfig(**NEOX, num_attention_heads=3, num_key_value_heads=3),
    "stablelm, parallel": StableLmConfig(
        **NEOX, num_attention_heads=6, num_key_value_heads=2, use_qkv_bias=True, use_parallel_residual=True,
        tie_word_embeddings=True, rope_parameters=PARTIAL,
    ),
}  # fmt: skip
ROUNDED = {"bloom, 12 heads", "mpt, 12 heads"}
"""Their slopes are 2^−0.5 and so on in single precision, whatever the model's."""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_model_is_ours_and_ours_is_one(name: str, tmp_path: Path) -> None:
    theirs = published(CONFIGS[name], tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    compare(theirs, ours, 1e-5)
    round_trip(theirs, ours, tmp_path / "ours")
    assert (
        json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == CONFIGS[name].model_type
    )


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - ROUNDED))
def test_in_double_precision_the_two_are_one_function(name: str, tmp_path: Path) -> None:
    with all_double():
        theirs = exact(published(CONFIGS[name], tmp_path, torch.float64))
        compare(theirs, load(tmp_path, dtype=torch.float64), 1e-11)


def exact(model: Any) -> Any:
    """The model without the numbers that its code rounds to single precision or to eight digits."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "embed_positions") and torch.is_tensor(module.embed_positions):
            positions, width = module.embed_positions.shape
            turns = 1e4 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
            angles = torch.arange(positions, dtype=torch.float64)[:, None] * turns
            module.embed_positions = torch.cat([angles.sin(), angles.cos()], dim=1)
        if type(module).__name__ in ("BloomGelu", "FastGELUActivation"):  # √(2/π) to eight or ten digits
            model.set_submodule(name, nn.GELU("tanh"))
    return model


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "post-norm": ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before False, and only True"),
    "narrow embedding": ("opt", {"word_embed_proj_dim": 32}, "word_embed_proj_dim 32, and only 48"),
    "norms without weights": ("opt", {"layer_norm_elementwise_affine": False}, "only True can be loaded"),
    "residual after the norm": (
        "bloom", {"apply_residual_connection_post_layernorm": True}, "True, and only False can be loaded",
    ),
    "unknown function": ("gpt_neox", {"hidden_act": "mish"}, "has hidden_act 'mish', and only relu, gelu_new"),
    "unknown attribute": ("gptj", {"attention_logit_cap": 3}, "has the attribute 'attention_logit_cap'"),
    "alibi in bfloat16": ("falcon", {"alibi": True}, "has alibi True, and only False can be loaded"),
    "three norms": (
        "falcon, new", {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn 3, and only 1 or 2 can be loaded",
    ),
    "norms of queries": ("phi", {"qk_layernorm": True}, "has qk_layernorm True, and only False"),
    "norms of each head": ("stablelm", {"qk_layernorm": True}, "has qk_layernorm True, and only False"),
    "too few kinds": ("gpt_neo", {"attention_types": [[["local"], 2]]}, "for each of its num_layers"),
    "no pattern": ("gpt_neo", {"attention_types": ["local"]}, "other than pairs of a pattern"),
    "other kinds": ("gpt_neo", {"attention_layers": ["global"] * 3}, "has attention_layers .*, and only"),
    "clipped queries": ("mpt", {"attn_config": {"clip_qkv": 6.0}}, "has clip_qkv 6.0, and only null"),
    "biases": ("mpt", {"no_bias": False}, "has no_bias False, and only True"),
    "three dimensions turned": (
        "phi", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.2}}, "turns pairs, but 0.2 of",
    ),
    "two widths": ("bloom", {"n_embed": 64}, "has n_embed 64, and only 48 can be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_another_model_is_refused(name: str, tmp_path: Path) -> None:
    family, changes, message = REFUSED[name]
    published(CONFIGS[family], tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_older_attributes_and_tables_mean_the_same(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = published(CONFIGS["gpt_neox, odd heads"], tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    del data["rope_parameters"], data["attention_bias"], data["is_decoder"]
    path.write_text(json.dumps(data | {"rotary_pct": 0.5, "rotary_emb_base": 20000}))
    weights = tmp_path / "model.safetensors"
    save_file(
        load_file(weights) | {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8).tril()}, weights
    )
    compare(theirs, load(tmp_path), 1e-5)


@pytest.mark.parametrize(
    "name", ["gpt_neox", "gptj", "opt", "bloom", "gpt_neo", "falcon, new", "mpt", "phi", "stablelm"]
)
def test_numbers_that_no_model_has_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    published(CONFIGS[name], tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    numbers = [key for key, value in data.items() if type(value) is int and "token_id" not in key]
    assert len(numbers) >= 4
    inert = {"max_seq_len", "pretraining_tp"}  # with ALiBi and in BLOOM they say nothing about the model
    lengths = {
        "window_size",
        "n_positions",
        "max_position_embeddings",
    }  # of no tensor, unless positions are learned
    for key in sorted(set(numbers) - inert):
        wrong = {0, -1} if key in lengths else {0, -1, 7}
        for number in wrong - {data[key]}:
            path.write_text(json.dumps(data | {key: number}))
            with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
                load(tmp_path)
            assert "\n" not in str(caught.value)


RELEASED: dict[str, dict[str, Any]] = {
    "mpt-7b": {
        "model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432, "max_seq_len": 2048,
        "attn_config": {
            "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "clip_qkv": None,
            "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "prefix_lm": False, "qk_ln": False,
            "softmax_scale": None,
        },
        "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4, "init_device": "cpu", "logit_scale": None,
        "init_config": {"name": "kaiming_normal_", "init_std": 0.02}, "learned_pos_emb": True, "no_bias": True,
        "norm_type": "low_precision_layernorm", "resid_pdrop": 0, "tokenizer_name": "EleutherAI/gpt-neox-20b",
        "use_cache": False, "verbose": 0,
    },
    "gpt-j-6b": {
        "model_type": "gptj", "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0,
        "gradient_checkpointing": False, "layer_norm_epsilon": 1e-05, "n_embd": 4096, "n_head": 16, "n_inner": None,
        "n_layer": 28, "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64,
        "scale_attn_weights": True, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"max_length": 50}}, "tie_word_embeddings": False,
        "tokenizer_class": "GPT2Tokenizer", "vocab_size": 50400,
    },
    "opt-125m": {
        "model_type": "opt", "activation_dropout": 0.0, "activation_function": "relu", "attention_dropout": 0.0,
        "do_layer_norm_before": True, "dropout": 0.1, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02,
        "layerdrop": 0.0, "max_position_embeddings": 2048, "num_attention_heads": 12, "num_hidden_layers": 12,
        "pad_token_id": 1, "prefix": "</s>", "vocab_size": 50272, "word_embed_proj_dim": 768,
    },
    "bloom-560m": {
        "model_type": "bloom", "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "hidden_dropout": 0.0, "n_embed": 1024,
        "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "n_inner": None, "n_layer": 24,
        "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": True,
        "skip_bias_add_qkv": False, "slow_but_exact": False, "unk_token_id": 0, "vocab_size": 250880,
    },
    "falcon-40b": {
        "model_type": "falcon", "alibi": False, "attention_dropout": 0.0, "auto_map": {}, "bias": False,
        "hidden_dropout": 0.0, "hidden_size": 8192, "layer_norm_epsilon": 1e-05, "multi_query": True,
        "new_decoder_architecture": True, "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8,
        "parallel_attn": True, "vocab_size": 65024,
    },
    "pythia-70m": {
        "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 8, "num_hidden_layers": 6,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True,
        "vocab_size": 50304,
    },
}  # fmt: skip
"""What the `config.json` of releases of those years say, which is more than `transformers` writes today."""


@pytest.mark.parametrize("name", RELEASED)
def test_the_attributes_of_releases_are_known(name: str) -> None:
    data = RELEASED[name]
    config: Any = FAMILIES[data["model_type"]].read(Attributes(data, "config.json"))
    assert config.d_model == next(
        data[key] for key in ("hidden_size", "n_embed", "n_embd", "d_model") if key in data
    )
    assert len(config.stack.blocks) == next(
        data[k] for k in ("num_hidden_layers", "n_layer", "n_layers") if k in data
    )
