"""LLaMA, Mistral, Qwen2 and Qwen3: one architecture with small differences, which are all in the attributes.

LLaMA (arXiv 2302.13971, 2307.09288, 2407.21783), Mistral (arXiv 2310.06825: a sliding window), Qwen2 (arXiv
2407.10671: biases on queries, keys and values, a window in some layers), Qwen3 (arXiv 2505.09388: QK-norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ...base.normalization import NoNormConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PreNormConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...enhancements.position.rope import RotaryPositionConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .family import Family, require
from .gated import parts_of, read_attention, write_attention
from .rope import read_rope, write_rope
from .weights import Rule, linear, same

KNOWN = {"hidden_act": "silu", "pretraining_tp": 1, "is_llama_config": True, "rope_interleaved": False}
"""Attributes that have one meaning here; SmolLM has the last two."""


def read(attributes: Attributes, qkv_bias: bool = False, qk_norm: bool = False) -> DecoderOnlyConfig:
    """Return the config that the attributes of any of these families describe."""
    for name, value in KNOWN.items():
        attributes.only(name, value)
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    norm = RMSNormConfig(attributes.take("rms_norm_eps", float, 1e-6))
    bias = attributes.take("attention_bias", bool, False)
    own = {
        "bias": bias or qkv_bias,
        "out_bias": bias if qkv_bias else None,
        "qk_norm": norm if qk_norm else NoNormConfig(),
    }
    feed_forward = GatedFeedForwardConfig(
        attributes.take("intermediate_size", int), bias=attributes.take("mlp_bias", bool, False)
    )
    blocks = [
        BlockConfig(mixer, feed_forward, wiring=PreNormConfig(0.0), norm=norm)
        for mixer in read_attention(attributes, d_model, read_windows(attributes, n_layers), own)
    ]
    position = read_rope(attributes, attributes.take("max_position_embeddings", int))
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig(tuple(blocks), position, norm, 0.0),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, False),
        initialization=GPT2Config(),
    )
    attributes.finish()
    return config


def read_windows(attributes: Attributes, n_layers: int) -> list[int | None]:
    """The window of each layer, null for full attention: by layer, or from a layer on, or the same for all."""
    window = attributes.take("sliding_window", int, None)
    if not attributes.take("use_sliding_window", bool, attributes.model_type == "mistral"):
        window = None
    first = attributes.take("max_window_layers", int, 0)
    kinds = attributes.take("layer_types", list, None)
    if kinds is None:
        return [window if layer >= first else None for layer in range(n_layers)]
    if len(kinds) != n_layers or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise attributes.fault(
            "has layer_types other than full_attention or sliding_attention for each layer"
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


def write(config: DecoderOnlyConfig, model_type: str) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    found, stack, position = write_attention(config), config.stack, config.stack.position
    assert isinstance(position, RotaryPositionConfig)
    require(position.layout == "half", "its positions are rotary by neighbouring pairs")
    (mixer, feed_forward), norm = parts_of(stack.blocks[0]), stack.norm
    require(isinstance(norm, RMSNormConfig), "its norm is not RMSNorm")
    assert isinstance(norm, RMSNormConfig)
    windows = [getattr(one.mixer, "window", None) for one in stack.blocks if isinstance(one, BlockConfig)]
    found |= {
        "head_dim": mixer.head_width(config.d_model),
        "hidden_act": "silu",
        "rms_norm_eps": norm.epsilon,
        "rope_parameters": write_rope(position),
    }
    if model_type == "llama":
        found |= {"mlp_bias": feed_forward.bias}
    if model_type in ("mistral", "qwen2"):  # have no such attribute
        del found["attention_bias"]
    if model_type == "mistral":
        found |= {"sliding_window": windows[0]}
    if model_type.startswith("qwen"):
        kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
        local = [window for window in windows if window is not None]
        found |= {
            "layer_types": kinds,
            "use_sliding_window": bool(local),
            "sliding_window": local[0] if local else None,
        }
    return found


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights of any of these families are called."""
    found = [same("model.embed_tokens.weight", "embedding.weight"), *linear("model.norm", "stack.norm")]
    for layer, block in enumerate(config.stack.blocks):
        assert isinstance(block, BlockConfig) and isinstance(block.mixer, GroupedQueryAttentionConfig)
        assert isinstance(block.feed_forward, GatedFeedForwardConfig)
        theirs, ours, mixer = f"model.layers.{layer}", f"stack.blocks.{layer}", block.mixer
        out_bias = mixer.bias if mixer.out_bias is None else mixer.out_bias
        for name in "qkv":
            found += linear(f"{theirs}.self_attn.{name}_proj", f"{ours}.mixer.branch.{name}_proj", mixer.bias)
        found += linear(f"{theirs}.self_attn.o_proj", f"{ours}.mixer.branch.out_proj", out_bias)
        if not isinstance(mixer.qk_norm, NoNormConfig):
            for name in "qk":
                found += linear(f"{theirs}.self_attn.{name}_norm", f"{ours}.mixer.branch.{name}_norm")
        for name in ("gate", "up", "down"):
            path = f"{ours}.feed_forward.branch.{name}_proj"
            found += linear(f"{theirs}.mlp.{name}_proj", path, block.feed_forward.bias)
        found += linear(f"{theirs}.input_layernorm", f"{ours}.mixer.norm")
        found += linear(f"{theirs}.post_attention_layernorm", f"{ours}.feed_forward.norm")
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def _family(model_type: str, architecture: str, qkv_bias: bool = False, qk_norm: bool = False) -> Family:
    reading = partial(read, qkv_bias=qkv_bias, qk_norm=qk_norm)
    return Family(model_type, architecture, reading, partial(write, model_type=model_type), rules)


FAMILIES = (
    _family("llama", "LlamaForCausalLM"),
    _family("mistral", "MistralForCausalLM"),
    _family("qwen2", "Qwen2ForCausalLM", qkv_bias=True),
    _family("qwen3", "Qwen3ForCausalLM", qk_norm=True),
)
