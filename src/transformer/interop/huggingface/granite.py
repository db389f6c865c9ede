"""Granite 3 (IBM 2024): LLaMA with four numbers that things are multiplied by.

`embedding_multiplier` of the embeddings, `attention_multiplier` of the scores instead of 1/√d_head,
`residual_multiplier` of what each branch adds, and `logits_scaling`, which the logits are divided by.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ...base.stack import BlockConfig, StackConfig
from ...enhancements.architecture.residual_multiplier import ResidualMultiplierConfig
from ...enhancements.embedding import NormedEmbeddingConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...models import DecoderOnlyConfig, HeadConfig
from .attributes import Attributes
from .family import Family, require
from .gated import PRE, parts_of, read_attention, rules, write_attention
from .rope import read_rope, write_rope


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    for name, *values in (("hidden_act", "silu"), ("pretraining_tp", 1)):
        attributes.only(name, *values)
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    norm = RMSNormConfig(attributes.take("rms_norm_eps", float, 1e-6))
    wiring = ResidualMultiplierConfig(0.0, attributes.take("residual_multiplier", float, 1.0))
    feed_forward = GatedFeedForwardConfig(
        attributes.take("intermediate_size", int), bias=attributes.take("mlp_bias", bool, False)
    )
    scale = attributes.take("attention_multiplier", float, 1.0)
    blocks = [
        BlockConfig(mixer, feed_forward, wiring=wiring, norm=norm)
        for mixer in read_attention(attributes, d_model, [None] * n_layers, {"scale": scale})
    ]
    position = read_rope(attributes, attributes.take("max_position_embeddings", int, 2048))
    multiplier = attributes.take("embedding_multiplier", float, 1.0)
    divisor = attributes.take("logits_scaling", float, 1.0)
    if divisor <= 0:
        raise attributes.fault(f"has logits_scaling {divisor:g}, which must be above 0")
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig(tuple(blocks), position, norm, 0.0),
        NormedEmbeddingConfig(scaled=False, multiplier=multiplier),
        attributes.take("tie_word_embeddings", bool, False),
        GPT2Config(),
        HeadConfig(scale=1 / divisor),
    )
    attributes.finish()
    return config


def write(config: DecoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    found, stack, embedding = write_attention(config), config.stack, config.embedding
    block: Any = stack.blocks[0]
    mixer, feed_forward = parts_of(block)
    require(isinstance(block.wiring, ResidualMultiplierConfig), "its branches are not multiplied")
    require(isinstance(embedding, NormedEmbeddingConfig), "its embeddings are not multiplied")
    require(isinstance(block.norm, RMSNormConfig), "its norm is not RMSNorm")
    return found | {
        "hidden_act": "silu",
        "mlp_bias": feed_forward.bias,
        "rms_norm_eps": block.norm.epsilon,
        "rope_parameters": write_rope(stack.position),  # type: ignore[arg-type]
        "embedding_multiplier": embedding.multiplier,  # type: ignore[attr-defined]
        "residual_multiplier": block.wiring.multiplier,
        "attention_multiplier": mixer.scale or mixer.head_width(config.d_model) ** -0.5,
        "logits_scaling": _divisor(config.lm_head.scale),
    }


def _divisor(scale: float) -> float:
    """The number of which `scale` is the inverse: of those that round to it, a short one."""
    short = float(f"{1 / scale:.12g}")
    return short if 1 / short == scale else 1 / scale


FAMILIES = (Family("granite", "GraniteForCausalLM", read, write, partial(rules, norms=PRE)),)
