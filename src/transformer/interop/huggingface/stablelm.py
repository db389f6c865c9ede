"""StableLM (Bellagente et al. 2024, arXiv 2402.17834 §2): LLaMA with LayerNorm, rotary position in a part of each head,
biases on queries, keys and values in some, and in some the two halves of a block side by side under one norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.normalization import LayerNormConfig
from ...base.stack import StackConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.position.rope import RotaryPositionConfig, rotary_width
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import Parts, parts_of, paths_of, projections
from .family import Family, require
from .rope import read_rope, write_rope
from .weights import Rule, linear, same


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    n_heads, groups = (attributes.take(f"num_{name}_heads", int) for name in ("attention", "key_value"))
    norm = LayerNormConfig(attributes.take("layer_norm_eps", float, 1e-5))
    mixer = GroupedQueryAttentionConfig(
        n_heads,
        None if groups == n_heads else groups,
        dropout=attributes.take("attention_dropout", float, 0.0),
        bias=attributes.take("use_qkv_bias", bool, False),
        out_bias=False,
    )
    feed_forward = GatedFeedForwardConfig(attributes.take("intermediate_size", int), bias=False)
    parallel = attributes.take("use_parallel_residual", bool, False)
    dropout = attributes.take("hidden_dropout", float, 0.0)
    block = Parts(mixer, feed_forward, norm, dropout, "shared norm" if parallel else "sequential").block()
    attributes.only("hidden_act", "silu")
    attributes.only("qk_layernorm", False)
    position = read_rope(
        attributes,
        attributes.take("max_position_embeddings", int, 4096),
        fraction=attributes.take("partial_rotary_factor", float, 0.25),
    )
    rotary_width(d_model // n_heads, position.fraction)  # refuses what cannot be turned in pairs
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, position, norm, 0.0),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, False),
        initialization=GPT2Config(),
    )
    attributes.finish()
    return config


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    parts: Any = parts_of(stack.blocks[0])
    mixer, feed_forward = parts.mixer, parts.feed_forward
    require(isinstance(mixer, GroupedQueryAttentionConfig), "its mixer is not attention by grouped heads")
    require(isinstance(feed_forward, GatedFeedForwardConfig), "its feed-forward network is not gated")
    require(isinstance(stack.position, RotaryPositionConfig), "its positions are not rotary")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(stack.blocks),
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_kv_heads or mixer.n_heads,
        "intermediate_size": feed_forward.d_ff,
        "hidden_act": "silu",
        "use_qkv_bias": mixer.bias,
        "use_parallel_residual": parts.order != "sequential",
        "layer_norm_eps": parts.norm.epsilon,
        "attention_dropout": mixer.dropout,
        "hidden_dropout": parts.dropout,
        "max_position_embeddings": stack.position.max_seq_len or 4096,
        "rope_parameters": {"partial_rotary_factor": 1.0, **write_rope(stack.position)},
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("model.embed_tokens.weight", "embedding.weight")]
    for layer, block in enumerate(config.stack.blocks):
        parts: Any = parts_of(block)
        ours, theirs = paths_of(layer, parts.order), f"model.layers.{layer}"
        found += projections(f"{theirs}.self_attn", ours.mixer, "o_proj", parts.mixer.bias, out_bias=False)
        for name in ("gate_proj", "up_proj", "down_proj"):
            found.append(same(f"{theirs}.mlp.{name}.weight", f"{ours.feed_forward}.{name}.weight"))
        found += linear(f"{theirs}.input_layernorm", ours.mixer_norm, bias=True)
        if parts.order == "sequential":
            found += linear(f"{theirs}.post_attention_layernorm", ours.feed_forward_norm, bias=True)
    found += linear("model.norm", "stack.norm", bias=True)
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (Family("stablelm", "StableLmForCausalLM", read, write, rules),)
