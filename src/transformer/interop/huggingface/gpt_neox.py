"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): rotary position in a part of each head, attention and
feed-forward side by side under two norms, or one after the other; queries, keys and values fused head by head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.attention import MultiHeadAttentionConfig
from ...base.normalization import LayerNormConfig
from ...base.stack import StackConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.position.rope import RotaryPositionConfig, rotary_width
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import (
    Parts,
    fused,
    only_head_of_another_task,
    parts_of,
    paths_of,
    read_feed_forward,
    write_feed_forward,
)
from .family import Family, require
from .rope import read_rope, write_rope
from .weights import Rule, linear, same


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    norm = LayerNormConfig(attributes.take("layer_norm_eps", float, 1e-5))
    dropout = attributes.take("hidden_dropout", float, 0.0)
    mixer = MultiHeadAttentionConfig(
        attributes.take("num_attention_heads", int),
        attributes.take("attention_dropout", float, 0.0),
        attributes.take("attention_bias", bool, True),
    )
    width = attributes.take("intermediate_size", int)
    feed_forward = read_feed_forward(attributes, "hidden_act", "gelu", width)
    parallel = attributes.take("use_parallel_residual", bool, True)
    block = Parts(mixer, feed_forward, norm, dropout, "two norms" if parallel else "sequential").block()
    position = read_rope(
        attributes,
        attributes.take("max_position_embeddings", int, 2048),
        attributes.take("rotary_emb_base", float, 10000.0),
        attributes.take("rotary_pct", float, 0.25),
    )
    rotary_width(d_model // mixer.n_heads, position.fraction)  # refuses what cannot be turned in pairs
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, position, norm, dropout),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, False),
        initialization=GPT2Config(),
    )
    only_head_of_another_task(attributes)
    attributes.take("is_decoder", bool, False)  # read nowhere: the model is causal either way
    attributes.finish()
    return config


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    parts: Any = parts_of(stack.blocks[0])
    mixer = parts.mixer
    require(isinstance(mixer, MultiHeadAttentionConfig), "its mixer is not the paper's attention")
    require(isinstance(stack.position, RotaryPositionConfig), "its positions are not rotary")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(stack.blocks),
        "num_attention_heads": mixer.n_heads,
        "intermediate_size": parts.feed_forward.d_ff,
        "hidden_act": write_feed_forward(parts.feed_forward),
        "attention_bias": mixer.bias,
        "attention_dropout": mixer.dropout,
        "hidden_dropout": parts.dropout,
        "layer_norm_eps": parts.norm.epsilon,
        "max_position_embeddings": stack.position.max_seq_len or 2048,
        "rope_parameters": {"partial_rotary_factor": 1.0, **write_rope(stack.position)},
        "use_parallel_residual": parts.order != "sequential",
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("gpt_neox.embed_in.weight", "embedding.weight")]
    for layer, block in enumerate(config.stack.blocks):
        parts: Any = parts_of(block)
        heads, bias = parts.mixer.n_heads, parts.mixer.bias
        ours, theirs = paths_of(layer, parts.order), f"gpt_neox.layers.{layer}"
        found += fused(
            f"{theirs}.attention.query_key_value", ours.mixer, heads, config.d_model // heads, bias
        )
        found += linear(f"{theirs}.attention.dense", f"{ours.mixer}.out_proj", bias)
        found += linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours.feed_forward}.up_proj", bias=True)
        found += linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours.feed_forward}.down_proj", bias=True)
        found += linear(f"{theirs}.input_layernorm", ours.mixer_norm, bias=True)
        found += linear(f"{theirs}.post_attention_layernorm", ours.feed_forward_norm, bias=True)
    found += linear("gpt_neox.final_layer_norm", "stack.norm", bias=True)
    if not config.tie_embeddings:
        found.append(same("embed_out.weight", "lm_head.weight"))
    return found


FAMILIES = (
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        read,
        write,
        rules,
        "gpt_neox.",
        ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq", "embed_out.weight"),
    ),
)
