"""OPT (arXiv 2205.01068): pre-norm, ReLU, and learned positions whose table begins with two rows for padding.

Loaded are the models that are pre-norm; the 350-million one, which is post-norm between maps to a narrower embedding,
is refused. Galactica (arXiv 2211.09085) is this with GELU and without biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.nn import functional as F

from ...base.attention import MultiHeadAttentionConfig
from ...base.normalization import LayerNormConfig
from ...base.position import LearnedPositionConfig
from ...base.stack import StackConfig
from ...enhancements.initialization import GPT2Config
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import Parts, parts_of, paths_of, projections, read_feed_forward, write_feed_forward
from .family import Family, require
from .weights import Rule, linear, reordered, same

PADDING = 2
"""Rows of their position table that no token that is read uses."""


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    attributes.only("word_embed_proj_dim", d_model)
    for name in ("do_layer_norm_before", "layer_norm_elementwise_affine"):
        attributes.only(name, True)
    attributes.only("_remove_final_layer_norm", False)
    norm, bias = LayerNormConfig(), attributes.take("enable_bias", bool, True)
    heads, dropout = attributes.take("num_attention_heads", int), attributes.take("dropout", float, 0.1)
    mixer = MultiHeadAttentionConfig(heads, attributes.take("attention_dropout", float, 0.0), bias)
    width = attributes.take("ffn_dim", int)
    feed_forward = read_feed_forward(attributes, "activation_function", "relu", width, bias)
    block = Parts(mixer, feed_forward, norm, dropout).block()
    position = LearnedPositionConfig(attributes.take("max_position_embeddings", int, 2048))
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, position, norm, 0.0),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        initialization=GPT2Config(),
    )
    for name in ("layerdrop", "init_std", "activation_dropout"):  # of training
        attributes.take(name, float, 0.0)
    attributes.finish()
    return config


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    parts: Any = parts_of(stack.blocks[0])
    require(isinstance(parts.mixer, MultiHeadAttentionConfig), "its mixer is not the paper's attention")
    require(isinstance(stack.position, LearnedPositionConfig), "its positions are not learned")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.d_model,
        "num_hidden_layers": len(stack.blocks),
        "num_attention_heads": parts.mixer.n_heads,
        "ffn_dim": parts.feed_forward.d_ff,
        "activation_function": write_feed_forward(parts.feed_forward),
        "enable_bias": parts.mixer.bias,
        "attention_dropout": parts.mixer.dropout,
        "dropout": parts.dropout,
        "max_position_embeddings": stack.position.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": None,  # their default is a token, whose embedding would get no gradient
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [
        same("model.decoder.embed_tokens.weight", "embedding.weight"),
        reordered(
            "model.decoder.embed_positions.weight",
            "stack.position.table.weight",
            lambda table: table[PADDING:],
            lambda table: F.pad(table, (0, 0, PADDING, 0)),
        ),
    ]
    for layer, block in enumerate(config.stack.blocks):
        parts: Any = parts_of(block)
        ours, theirs, bias = paths_of(layer, "sequential"), f"model.decoder.layers.{layer}", parts.mixer.bias
        found += projections(f"{theirs}.self_attn", ours.mixer, "out_proj", bias, bias)
        found += linear(f"{theirs}.fc1", f"{ours.feed_forward}.up_proj", bias)
        found += linear(f"{theirs}.fc2", f"{ours.feed_forward}.down_proj", bias)
        found += linear(f"{theirs}.self_attn_layer_norm", ours.mixer_norm, bias=True)
        found += linear(f"{theirs}.final_layer_norm", ours.feed_forward_norm, bias=True)
    found += linear("model.decoder.final_layer_norm", "stack.norm", bias=True)
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (Family("opt", "OPTForCausalLM", read, write, rules),)
