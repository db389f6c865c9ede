"""Phi-1, Phi-1.5 (arXiv 2309.05463) and Phi-2: attention and feed-forward side by side under one norm, rotary position
in a part of each head, biases everywhere, on the logits too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.normalization import LayerNormConfig
from ...base.stack import StackConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.position.rope import RotaryPositionConfig, rotary_width
from ...models import DecoderOnlyConfig, HeadConfig
from .attributes import Attributes
from .blocks import Parts, parts_of, paths_of, projections, read_feed_forward, write_feed_forward
from .family import Family, require
from .rope import read_rope, write_rope
from .weights import Rule, linear, same


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    n_heads = attributes.take("num_attention_heads", int)
    groups = attributes.take("num_key_value_heads", int, n_heads)
    norm = LayerNormConfig(attributes.take("layer_norm_eps", float, 1e-5))
    mixer = GroupedQueryAttentionConfig(
        n_heads,
        None if groups == n_heads else groups,
        dropout=attributes.take("attention_dropout", float, 0.0),
        bias=True,
    )
    feed_forward = read_feed_forward(
        attributes, "hidden_act", "gelu_new", attributes.take("intermediate_size", int, 4 * d_model)
    )
    dropout = attributes.take("resid_pdrop", float, 0.0)
    block = Parts(mixer, feed_forward, norm, dropout, "shared norm").block()
    attributes.only("qk_layernorm", False)
    position = read_rope(
        attributes,
        attributes.take("max_position_embeddings", int, 2048),
        fraction=attributes.take("partial_rotary_factor", float, 0.5),
    )
    rotary_width(d_model // n_heads, position.fraction)  # refuses what cannot be turned in pairs
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, position, norm, attributes.take("embd_pdrop", float, 0.0)),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, False),
        initialization=GPT2Config(),
        lm_head=HeadConfig(bias=True),
    )
    attributes.finish()
    return config


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    parts: Any = parts_of(stack.blocks[0])
    mixer = parts.mixer
    require(isinstance(mixer, GroupedQueryAttentionConfig), "its mixer is not attention by grouped heads")
    require(isinstance(stack.position, RotaryPositionConfig), "its positions are not rotary")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(stack.blocks),
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_kv_heads or mixer.n_heads,
        "intermediate_size": parts.feed_forward.d_ff,
        "hidden_act": write_feed_forward(parts.feed_forward),
        "layer_norm_eps": parts.norm.epsilon,
        "attention_dropout": mixer.dropout,
        "resid_pdrop": parts.dropout,
        "embd_pdrop": stack.dropout,
        "max_position_embeddings": stack.position.max_seq_len or 2048,
        "rope_parameters": {"partial_rotary_factor": 1.0, **write_rope(stack.position)},
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("model.embed_tokens.weight", "embedding.weight")]
    for layer in range(len(config.stack.blocks)):
        ours, theirs = paths_of(layer, "shared norm"), f"model.layers.{layer}"
        found += projections(f"{theirs}.self_attn", ours.mixer, "dense", bias=True, out_bias=True)
        found += linear(f"{theirs}.mlp.fc1", f"{ours.feed_forward}.up_proj", bias=True)
        found += linear(f"{theirs}.mlp.fc2", f"{ours.feed_forward}.down_proj", bias=True)
        found += linear(f"{theirs}.input_layernorm", ours.mixer_norm, bias=True)
    found += linear("model.final_layernorm", "stack.norm", bias=True)
    found.append(same("lm_head.bias", "lm_head.bias"))
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (Family("phi", "PhiForCausalLM", read, write, rules),)
