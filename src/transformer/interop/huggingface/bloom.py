"""BLOOM (arXiv 2211.05100 §3.2): ALiBi, a norm after the embedding, and queries, keys and values fused head by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.attention import MultiHeadAttentionConfig
from ...base.normalization import LayerNormConfig
from ...base.stack import StackConfig
from ...enhancements.embedding import NormedEmbeddingConfig
from ...enhancements.feed_forward.gelu import GELUFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.position.alibi import ALiBiConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import Parts, either, fused, parts_of, paths_of
from .family import Family, require
from .weights import Rule, linear, same


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model = either(attributes, int, ("hidden_size", "n_embed"))
    n_layers = either(attributes, int, ("n_layer", "num_hidden_layers"))
    n_heads = either(attributes, int, ("n_head", "num_attention_heads"))
    norm = LayerNormConfig(attributes.take("layer_norm_epsilon", float, 1e-5))
    mixer = MultiHeadAttentionConfig(n_heads, attributes.take("attention_dropout", float, 0.0), bias=True)
    feed_forward = GELUFeedForwardConfig(4 * d_model, form="tanh")
    block = Parts(mixer, feed_forward, norm, attributes.take("hidden_dropout", float, 0.0)).block()
    attributes.only("apply_residual_connection_post_layernorm", False)
    attributes.only("n_inner", 4 * d_model)
    attributes.take("pretraining_tp", int, 1)  # how the same products were once split and rounded
    attributes.take("seq_length", int, 0)  # of training; ALiBi has no longest
    attributes.take("offset_alibi", int, 0)
    for name in (
        "slow_but_exact",
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "skip_bias_add",
        "skip_bias_add_qkv",
    ):  # how the training program ran the same equations
        attributes.take(name, bool, False)
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, ALiBiConfig(n_heads), norm, 0.0),
        embedding=NormedEmbeddingConfig(scaled=False, norm=norm),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        initialization=GPT2Config(),
    )
    attributes.finish()
    return config


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    parts: Any = parts_of(stack.blocks[0])
    require(isinstance(parts.mixer, MultiHeadAttentionConfig), "its mixer is not the paper's attention")
    require(isinstance(stack.position, ALiBiConfig), "its positions are not ALiBi")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "n_layer": len(stack.blocks),
        "n_head": parts.mixer.n_heads,
        "layer_norm_epsilon": parts.norm.epsilon,
        "attention_dropout": parts.mixer.dropout,
        "hidden_dropout": parts.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("transformer.word_embeddings.weight", "embedding.weight")]
    found += linear("transformer.word_embeddings_layernorm", "embedding.norm", bias=True)
    for layer, block in enumerate(config.stack.blocks):
        parts: Any = parts_of(block)
        heads = parts.mixer.n_heads
        ours, theirs = paths_of(layer, "sequential"), f"transformer.h.{layer}"
        attention = f"{theirs}.self_attention"
        found += fused(f"{attention}.query_key_value", ours.mixer, heads, config.d_model // heads, bias=True)
        found += linear(f"{attention}.dense", f"{ours.mixer}.out_proj", bias=True)
        found += linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours.feed_forward}.up_proj", bias=True)
        found += linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours.feed_forward}.down_proj", bias=True)
        found += linear(f"{theirs}.input_layernorm", ours.mixer_norm, bias=True)
        found += linear(f"{theirs}.post_attention_layernorm", ours.feed_forward_norm, bias=True)
    found += linear("transformer.ln_f", "stack.norm", bias=True)
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (Family("bloom", "BloomForCausalLM", read, write, rules, "transformer."),)
