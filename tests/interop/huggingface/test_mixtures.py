"""Families with mixtures of experts: published models are ours, and ours are published models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    JambaConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from tests.interop.huggingface.published import VOCAB, all_double, compare, ragged, round_trip, shaken
from transformer import load

pytestmark = pytest.mark.shapes_unchecked

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "hidden_size": 48,
    "num_hidden_layers": 2, "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = SIZES | {"num_attention_heads": 6, "num_key_value_heads": 2}
LATENT = SIZES | {
    "num_attention_heads": 3, "num_key_value_heads": 3, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8,
    "v_head_dim": 5, "moe_intermediate_size": 7, "intermediate_size": 20, "first_k_dense_replace": 1,
    "n_routed_experts": 8, "num_experts_per_tok": 3,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "mixtral": MixtralConfig(**GROUPED, intermediate_size=20, num_local_experts=5, sliding_window=17),
    "mixtral, odd heads": MixtralConfig(
        **SIZES, num_attention_heads=3, num_key_value_heads=1, head_dim=10, intermediate_size=9, num_local_experts=3,
        num_experts_per_tok=1, tie_word_embeddings=True,
    ),
    "olmoe": OlmoeConfig(**GROUPED, intermediate_size=20, num_experts=6, num_experts_per_tok=3),
    "olmoe, renormalized": OlmoeConfig(
        **SIZES, num_attention_heads=3, intermediate_size=9, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True,
        attention_bias=True, tie_word_embeddings=True,
    ),
    "qwen2_moe": Qwen2MoeConfig(
        **GROUPED, moe_intermediate_size=9, shared_expert_intermediate_size=11, num_experts=6, num_experts_per_tok=3,
    ),
    "qwen2_moe, some dense": Qwen2MoeConfig(
        **(SIZES | {"num_hidden_layers": 3}), num_attention_heads=3, num_key_value_heads=3, intermediate_size=20,
        moe_intermediate_size=9, shared_expert_intermediate_size=11, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[1], norm_topk_prob=True, qkv_bias=False, use_sliding_window=True, sliding_window=17,
        layer_types=["full_attention", "sliding_attention", "full_attention"], tie_word_embeddings=True,
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **GROUPED, head_dim=10, moe_intermediate_size=9, num_experts=6, num_experts_per_tok=3, norm_topk_prob=True,
    ),
    "qwen3_moe, every other": Qwen3MoeConfig(
        **SIZES, num_attention_heads=3, num_key_value_heads=1, head_dim=16, intermediate_size=20,
        moe_intermediate_size=9, num_experts=4, num_experts_per_tok=1, decoder_sparse_step=2, attention_bias=True,
    ),
    "deepseek_v2": DeepseekV2Config(
        **LATENT, q_lora_rank=None, topk_method="greedy", routed_scaling_factor=1.7, n_shared_experts=2
    ),
    "deepseek_v2, groups and yarn": DeepseekV2Config(
        **LATENT, q_lora_rank=9, topk_method="group_limited_greedy", n_group=4, topk_group=2, tie_word_embeddings=True,
        rope_parameters=YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    "deepseek_v3": DeepseekV3Config(**LATENT, q_lora_rank=9, n_group=4, topk_group=2, num_mtp_layers=0),
    "deepseek_v3, yarn": DeepseekV3Config(
        **LATENT, q_lora_rank=None, n_group=1, topk_group=1, norm_topk_prob=False, rope_interleave=False,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, n_shared_experts=2,
    ),
    "gpt_oss": GptOssConfig(
        **GROUPED, head_dim=16, intermediate_size=20, num_local_experts=5, num_experts_per_tok=2, sliding_window=17,
        swiglu_limit=1.5,
    ),
    "gpt_oss, odd heads": GptOssConfig(
        **SIZES, num_attention_heads=3, num_key_value_heads=1, head_dim=16, intermediate_size=9, num_local_experts=3,
        num_experts_per_tok=1, layer_types=["full_attention"] * 2, swiglu_limit=0.7,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "jamba": JambaConfig(
        **(GROUPED | {"num_hidden_layers": 3}), intermediate_size=20, num_experts=5, attn_layer_period=3,
        attn_layer_offset=1, expert_layer_offset=0,
    ),
    "jamba, one expert": JambaConfig(
        **SIZES, num_attention_heads=3, num_key_value_heads=1, head_dim=10, intermediate_size=9, num_experts=1,
        num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=0, mamba_d_state=5, mamba_d_conv=3,
        mamba_expand=1, mamba_dt_rank=7, mamba_conv_bias=False, rms_norm_eps=1e-3, tie_word_embeddings=True,
    ),
}  # fmt: skip
each_family = pytest.mark.parametrize("name", CONFIGS)


def published(name: str, folder: Path, dtype: torch.dtype = torch.float32, **saving: Any) -> Any:
    """A model of `transformers` with random weights, the bias for the choice too, saved in the folder."""
    torch.manual_seed(3)
    config = CONFIGS[name]
    made = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    model = shaken(made, dtype)
    for path, buffer in model.named_buffers():
        if path.endswith("e_score_correction_bias"):
            buffer.copy_(0.3 * torch.randn(buffer.shape))
    model.save_pretrained(folder, **saving)
    return model


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Each family's model in single precision and its folder, made once."""

    @cache
    def of(name: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp("published")
        return published(name, folder), folder

    return lambda name: (of(name)[0].zero_grad() or of(name)[0], of(name)[1])


def changed(source: Path, folder: Path, changes: dict[str, Any], gone: tuple[str, ...] = ()) -> Path:
    """A copy of a published model with other attributes."""
    copy = shutil.copytree(source, folder / "changed")
    data = json.loads((copy / "config.json").read_text())
    data = {key: value for key, value in data.items() if key not in gone} | changes
    (copy / "config.json").write_text(json.dumps(data))
    return copy


@contextmanager
def doubled() -> Iterator[None]:
    """Also where code asks for single precision by a method, or makes a range in it."""
    softmax, arange, of_type = Tensor.softmax, torch.arange, Tensor.type

    def wide(options: dict[str, Any]) -> dict[str, Any]:
        return options | ({"dtype": torch.float64} if options.get("dtype") is torch.float32 else {})

    with all_double(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "softmax", lambda x, *args, **options: softmax(x, *args, **wide(options)))
        patch.setattr(
            Tensor, "type", lambda x, kind: of_type(x, torch.float64 if kind is torch.float32 else kind)
        )
        patch.setattr(torch, "arange", lambda *args, **options: arange(*args, **wide(options)))
        yield


@each_family
def test_a_published_model_is_ours_and_ours_is_one(name: str, kept: Any, tmp_path: Path) -> None:
    theirs, folder = kept(name)
    ours = load(folder)
    compare(theirs, ours, 1e-5)
    round_trip(theirs, ours, tmp_path, experts_implementation="eager")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == CONFIGS[name].model_type
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


@each_family
def test_in_double_precision_the_two_are_one_function(name: str, tmp_path: Path) -> None:
    with doubled():
        theirs = published(name, tmp_path, torch.float64)
        ours = load(tmp_path, dtype=torch.float64)
        compare(theirs, ours, 1e-11)
        tokens, _ = ragged()
        with torch.no_grad():
            expected, state = theirs(tokens).logits, ours.initial_state()
            got = torch.cat(
                [ours.decode(part, state) for part in tokens.split([60, 1, 1, 17, 1], dim=1)], dim=1
            )
        assert (got - expected).abs().max() <= 1e-11 * max(1.0, expected.abs().max().item())


FUSED = [name for name in CONFIGS if "gpt_oss" not in name and "," not in name]


@pytest.mark.parametrize("name", FUSED)
def test_experts_in_one_tensor_are_read_too(name: str, tmp_path: Path) -> None:
    """As `transformers` holds them in memory, and saves them if asked to."""
    theirs = published(name, tmp_path, save_original_format=False)
    assert any(path.endswith("experts.gate_up_proj") for path in load_file(tmp_path / "model.safetensors"))
    compare(theirs, load(tmp_path), 1e-5)


OLDER: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "mixtral": ("mixtral", {"rope_theta": 1e6}, ("rope_parameters", "head_dim")),
    "qwen2_moe": (
        "qwen2_moe", {"rope_theta": 1e4, "max_window_layers": 21}, ("rope_parameters", "layer_types", "qkv_bias"),
    ),
    "deepseek_v2": (
        "deepseek_v2, groups and yarn",
        {
            "rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32,
            "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707}, "scoring_func": "softmax",
            "ep_size": 1, "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True,
        },
        ("rope_parameters", "qk_head_dim", "head_dim"),
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {"rope_theta": 1e4, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "ep_size": 1, "moe_layer_freq": 1},
        ("rope_parameters", "rope_interleave"),
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            "rope_theta": 150000, "initial_context_length": 4096, "experts_per_token": 2,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                "rope_type": "yarn", "truncate": False,
            },
        },
        ("rope_parameters", "swiglu_alpha", "layer_types"),
    ),
    "jamba": (
        "jamba",
        {
            "n_ctx": 4096, "calc_logits_for_entire_prompt": False, "mamba_inner_layernorms": True,
            "num_logits_to_keep": 1, "sliding_window": None, "mamba_dt_rank": "auto",
        },
        ("max_position_embeddings", "use_mambapy", "use_associative_scan"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", OLDER)
def test_the_attributes_of_the_released_files_mean_the_same(family: str, kept: Any, tmp_path: Path) -> None:
    name, changes, gone = OLDER[family]
    theirs, folder = kept(name)
    compare(theirs, load(changed(folder, tmp_path, changes, gone)), 1e-5)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "jitter": ("mixtral", {"router_jitter_noise": 0.1}, "has router_jitter_noise 0.1, and only 0.0"),
    "clipped": ("olmoe", {"clip_qkv": 8.0}, "has clip_qkv 8.0, and only null"),
    "mxfp4": (
        "gpt_oss", {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}},
        "has weights quantized by 'mxfp4', which are not read; dequantize them first",
    ),
    "fp8": ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "has weights quantized by 'fp8'"),
    "another gate": ("gpt_oss", {"swiglu_alpha": 2.0}, "has swiglu_alpha 2.0, and only 1.702"),
    "another method": ("deepseek_v2", {"topk_method": "noaux_tc"}, "only greedy or group_limited_greedy"),
    "another score": ("deepseek_v3", {"scoring_func": "softmax"}, "has scoring_func 'softmax', and only 'sigmoid'"),
    "renormalized V2": ("deepseek_v2", {"norm_topk_prob": True}, "has norm_topk_prob True, and only False"),
    "biases": ("deepseek_v3", {"attention_bias": True}, "has attention_bias True, and only False"),
    "too many": ("mixtral", {"num_experts_per_tok": 6}, "top_k 6 is more than the 5 experts"),
    "uneven groups": ("deepseek_v3", {"n_group": 3}, "n_experts 8 cannot stand in n_groups 3"),
    "no step": ("qwen3_moe", {"decoder_sparse_step": 0}, "has decoder_sparse_step 0, which must be 1 or more"),
    "no such expert": ("mixtral", {"num_local_experts": 6}, "has no tensor .*experts.5.w1.weight"),
    "narrower": ("qwen3_moe", {"moe_intermediate_size": 8}, "has shape .* which does not fit .*experts.*_proj.weight"),
    "unknown": ("qwen2_moe", {"router_bias": 1}, "has the attribute 'router_bias', which is not known"),
    "no norms inside": (
        "jamba", {"mamba_inner_layernorms": False}, "has mamba_inner_layernorms False, and only True",
    ),
    "a window": ("jamba", {"sliding_window": 17}, "has sliding_window 17, and only null"),
    "another activation": ("jamba", {"hidden_act": "gelu"}, "has hidden_act 'gelu', and only 'silu'"),
    "biased attention": ("jamba", {"attention_bias": True}, "has attention_bias True, and only False"),
    "no such layer": (
        "jamba", {"attn_layer_offset": 3}, "has attn_layer_offset 3, which is not from 0 to below attn_layer_period 3",
    ),
    "no period": (
        "jamba", {"expert_layer_period": 0}, "has expert_layer_offset 0, which is not from 0 to below expert_layer_p",
    ),
    "attention elsewhere": ("jamba", {"attn_layer_offset": 2}, "has no tensor 'model.layers.1.mamba"),
    "experts elsewhere": ("jamba", {"expert_layer_offset": 1}, "has no tensor 'model.layers.0.feed_forward.down"),
    "kinds of layer": ("gpt_oss", {"layer_types": ["full_attention"]}, "has layer_types other than"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_another_model_is_refused(name: str, kept: Any, tmp_path: Path) -> None:
    family, changes, message = REFUSED[name]
    folder = changed(kept(family)[1], tmp_path, changes)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_expert_is_named(kept: Any, tmp_path: Path) -> None:
    weights = changed(kept("olmoe")[1], tmp_path, {}) / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.experts.4.up_proj.weight"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match="has no tensor 'model.layers.1.mlp.experts.4.up_proj.weight'"):
        load(weights.parent)
