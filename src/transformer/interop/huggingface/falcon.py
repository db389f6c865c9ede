"""Falcon (arXiv 2311.16867): few heads of keys and values, rotary positions, attention and feed-forward side by side.

The first models have one head of keys and values and one norm for both halves; the "new decoder architecture" has any
number of such heads, and a norm for each half or one for both. Maps have no biases, or all of them have.
Refused are the models with ALiBi: their published code scales the bias like the scores and rounds it to bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.normalization import LayerNormConfig
from ...base.stack import StackConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.position.rope import RotaryPositionConfig, rotary_width
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import Order, Parts, fused, parts_of, paths_of, read_feed_forward, write_feed_forward
from .family import Family, require
from .rope import read_rope, write_rope
from .weights import Rule, linear, same

NORMS = {
    "sequential": ("input_layernorm", "post_attention_layernorm"),
    "shared norm": ("input_layernorm",),
    "two norms": ("ln_attn", "ln_mlp"),
}


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    norm = LayerNormConfig(attributes.take("layer_norm_epsilon", float, 1e-5))
    n_heads, bias = attributes.take("num_attention_heads", int), attributes.take("bias", bool, False)
    order, n_kv_heads = _shape(attributes, n_heads)
    mixer = GroupedQueryAttentionConfig(
        n_heads,
        None if n_kv_heads == n_heads else n_kv_heads,
        dropout=attributes.take("attention_dropout", float, 0.0),
        bias=bias,
    )
    width = attributes.take("ffn_hidden_size", int, 4 * d_model)
    feed_forward = read_feed_forward(attributes, "activation", "gelu", width, bias)
    dropout = attributes.take("hidden_dropout", float, 0.0)
    block = Parts(mixer, feed_forward, norm, dropout, order).block()
    for name in ("alibi", "apply_residual_connection_post_layernorm"):
        attributes.only(name, False)
    position = read_rope(attributes, attributes.take("max_position_embeddings", int, 2048))
    rotary_width(d_model // n_heads, position.fraction)  # refuses what cannot be turned in pairs
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, position, norm, 0.0),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        initialization=GPT2Config(),
    )
    attributes.finish()
    return config


def _shape(attributes: Attributes, n_heads: int) -> tuple[Order, int]:
    """How the halves of a block stand, and how many heads of keys and values there are."""
    one_head = attributes.take("multi_query", bool, True)
    if attributes.take("new_decoder_architecture", bool, False):
        attributes.only("parallel_attn", True)
        norms = attributes.take("num_ln_in_parallel_attn", int, 2)
        if norms not in (1, 2):
            raise attributes.fault(f"has num_ln_in_parallel_attn {norms}, and only 1 or 2 can be loaded")
        return "shared norm" if norms == 1 else "two norms", attributes.take("num_kv_heads", int, n_heads)
    attributes.only("num_ln_in_parallel_attn", 1)
    order: Order = "shared norm" if attributes.take("parallel_attn", bool, True) else "sequential"
    if one_head:
        attributes.take("num_kv_heads", int, 1)  # says nothing here
        return order, 1
    attributes.only("num_kv_heads", n_heads)
    return order, n_heads


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    parts: Any = parts_of(stack.blocks[0])
    mixer = parts.mixer
    require(isinstance(mixer, GroupedQueryAttentionConfig), "its mixer is not attention by grouped heads")
    require(isinstance(stack.position, RotaryPositionConfig), "its positions are not rotary")
    groups = mixer.n_kv_heads or mixer.n_heads
    new = parts.order == "two norms" or groups not in (1, mixer.n_heads)
    found = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(stack.blocks),
        "num_attention_heads": mixer.n_heads,
        "num_kv_heads": groups,
        "multi_query": groups == 1,
        "new_decoder_architecture": new,
        "parallel_attn": parts.order != "sequential",
        "ffn_hidden_size": parts.feed_forward.d_ff,
        "activation": write_feed_forward(parts.feed_forward),
        "bias": mixer.bias,
        "layer_norm_epsilon": parts.norm.epsilon,
        "attention_dropout": mixer.dropout,
        "hidden_dropout": parts.dropout,
        "max_position_embeddings": stack.position.max_seq_len or 2048,
        "rope_parameters": write_rope(stack.position),
        "tie_word_embeddings": config.tie_embeddings,
    }
    return found | {"num_ln_in_parallel_attn": len(NORMS[parts.order])} if new else found


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("transformer.word_embeddings.weight", "embedding.weight")]
    for layer, block in enumerate(config.stack.blocks):
        parts: Any = parts_of(block)
        ours, theirs, mixer = paths_of(layer, parts.order), f"transformer.h.{layer}", parts.mixer
        groups, d_head = mixer.n_kv_heads or mixer.n_heads, mixer.head_width(config.d_model)
        attention = f"{theirs}.self_attention"
        found += fused(f"{attention}.query_key_value", ours.mixer, groups, d_head, mixer.bias)
        found += linear(f"{attention}.dense", f"{ours.mixer}.out_proj", mixer.bias)
        found += linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours.feed_forward}.up_proj", mixer.bias)
        found += linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours.feed_forward}.down_proj", mixer.bias)
        norms = ours.mixer_norm, ours.feed_forward_norm
        for name, path in zip(NORMS[parts.order], norms, strict=False):  # one of them where they are shared
            found += linear(f"{theirs}.{name}", path, bias=True)
    found += linear("transformer.ln_f", "stack.norm", bias=True)
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (Family("falcon", "FalconForCausalLM", read, write, rules, "transformer."),)
