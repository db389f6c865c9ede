"""GPT-J (Wang and Komatsuzaki 2021): attention and feed-forward side by side under one norm, rotary position of
neighbouring dimensions in the first part of each head, and a bias on the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.attention import MultiHeadAttentionConfig
from ...base.normalization import LayerNormConfig
from ...base.stack import StackConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.position.rope import RotaryPositionConfig, rotary_width
from ...models import DecoderOnlyConfig, HeadConfig
from .attributes import Attributes
from .blocks import (
    Parts,
    only_head_of_another_task,
    parts_of,
    paths_of,
    projections,
    read_feed_forward,
    write_feed_forward,
)
from .family import Family, require
from .weights import Rule, linear, same


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("n_embd", int), attributes.take("n_layer", int)
    n_heads, turned = attributes.take("n_head", int), attributes.take("rotary_dim", int)
    norm = LayerNormConfig(attributes.take("layer_norm_epsilon", float, 1e-5))
    mixer = MultiHeadAttentionConfig(n_heads, attributes.take("attn_pdrop", float, 0.0))
    width = attributes.take("n_inner", int, 4 * d_model)
    feed_forward = read_feed_forward(attributes, "activation_function", "gelu_new", width)
    block = Parts(
        mixer, feed_forward, norm, attributes.take("resid_pdrop", float, 0.0), "shared norm"
    ).block()
    position = RotaryPositionConfig(
        layout="interleaved",
        fraction=turned / (d_model // n_heads),
        max_seq_len=attributes.take("n_positions", int, 2048),
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
    attributes.only("rotary", True)
    attributes.only("scale_attn_weights", True)
    attributes.take("n_ctx", int, 0)
    only_head_of_another_task(attributes)
    attributes.finish()
    return config


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    parts: Any = parts_of(stack.blocks[0])
    require(isinstance(parts.mixer, MultiHeadAttentionConfig), "its mixer is not the paper's attention")
    require(isinstance(stack.position, RotaryPositionConfig), "its positions are not rotary")
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": len(stack.blocks),
        "n_head": parts.mixer.n_heads,
        "n_inner": parts.feed_forward.d_ff,
        "n_positions": stack.position.max_seq_len or 2048,
        "rotary_dim": rotary_width(config.d_model // parts.mixer.n_heads, stack.position.fraction),
        "activation_function": write_feed_forward(parts.feed_forward),
        "layer_norm_epsilon": parts.norm.epsilon,
        "attn_pdrop": parts.mixer.dropout,
        "resid_pdrop": parts.dropout,
        "embd_pdrop": stack.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("transformer.wte.weight", "embedding.weight")]
    for layer in range(len(config.stack.blocks)):
        ours, theirs = paths_of(layer, "shared norm"), f"transformer.h.{layer}"
        found += projections(f"{theirs}.attn", ours.mixer, "out_proj", bias=False, out_bias=False)
        found += linear(f"{theirs}.mlp.fc_in", f"{ours.feed_forward}.up_proj", bias=True)
        found += linear(f"{theirs}.mlp.fc_out", f"{ours.feed_forward}.down_proj", bias=True)
        found += linear(f"{theirs}.ln_1", ours.mixer_norm, bias=True)
    found += linear("transformer.ln_f", "stack.norm", bias=True)
    found.append(same("lm_head.bias", "lm_head.bias"))
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (
    Family(
        "gptj", "GPTJForCausalLM", read, write, rules, "transformer.", (".attn.bias", ".attn.masked_bias")
    ),
)
