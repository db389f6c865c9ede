"""Mixtral (arXiv 2401.04088) and OLMoE (arXiv 2409.02060): every layer a mixture of gated experts.

Mixtral is Mistral with 8 experts of which a token uses 2, by a softmax after the choice. OLMoE has 64 narrow ones of
which a token uses 8, by a softmax before it, and normalizes queries and keys over all heads together.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ...enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from ...enhancements.architecture.moe.routing import RouterConfig
from ...enhancements.architecture.moe.softmax import SoftmaxAfterTopKConfig, SoftmaxBeforeTopKConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import either
from .experts import (
    FUSED,
    Names,
    decoder,
    first_mixture,
    norm_of,
    read_balance,
    refuse_quantized,
    rules,
    write_balance,
)
from .family import Family
from .gated import grouped_attributes, read_attention
from .rope import read_rope, write_rope

MIXTRAL = Names("block_sparse_moe", maps=("w1", "w3", "w2"))


def read_mixtral(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of Mixtral describe."""
    attributes.only("router_jitter_noise", 0.0)
    n_experts = either(attributes, int, ("num_local_experts", "num_experts"), 8)
    router = SoftmaxAfterTopKConfig(attributes.take("num_experts_per_tok", int, 2))
    window = attributes.take("sliding_window", int, None)
    return _read(attributes, n_experts, router, window, {}, (1e6, 1e-5, 0.001))


def read_olmoe(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of OLMoE describe."""
    attributes.only("clip_qkv")
    n_experts = attributes.take("num_experts", int, 64)
    top_k = attributes.take("num_experts_per_tok", int, 8)
    router = SoftmaxBeforeTopKConfig(top_k, renormalize=attributes.take("norm_topk_prob", bool, False))
    norm = RMSNormConfig(attributes.take("rms_norm_eps", float, 1e-5))
    settings = {"qk_norm": norm, "qk_norm_over": "projection"}
    return _read(attributes, n_experts, router, None, settings, (1e4, norm.epsilon, 0.01))


def _read(
    attributes: Attributes,
    n_experts: int,
    router: RouterConfig,
    window: int | None,
    settings: dict[str, Any],
    defaults: tuple[float, float, float],
) -> DecoderOnlyConfig:
    """Return the decoder of what the two have in common. defaults: rotary base, ε, weight of the balance loss."""
    refuse_quantized(attributes)
    attributes.only("hidden_act", "silu")
    base, epsilon, weight = defaults
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    norm = RMSNormConfig(attributes.take("rms_norm_eps", float, epsilon))
    expert = GatedFeedForwardConfig(attributes.take("intermediate_size", int))
    mixture = MixtureOfExpertsConfig(n_experts, expert, router, losses=read_balance(attributes, weight))
    mixers = read_attention(attributes, d_model, [window] * n_layers, settings)
    position = read_rope(attributes, attributes.take("max_position_embeddings", int, 4096), base)
    return decoder(attributes, d_model, [(mixer, mixture) for mixer in mixers], norm, position)


def write(config: DecoderOnlyConfig, model_type: str) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    found, (_, mixture) = grouped_attributes(config), first_mixture(config)
    block: Any = config.stack.blocks[0]
    experts: Any = mixture.experts
    found |= write_balance(mixture) | {
        "intermediate_size": experts.d_ff,
        "num_experts_per_tok": mixture.router.top_k,
        "hidden_act": "silu",
        "rms_norm_eps": norm_of(config).epsilon,
        "rope_parameters": write_rope(config.stack.position),  # type: ignore[arg-type]
    }
    if model_type == "olmoe":
        renormalize = getattr(mixture.router, "renormalize", False)
        return found | {"num_experts": mixture.n_experts, "norm_topk_prob": renormalize}
    del found["attention_bias"]
    window = getattr(block.mixer, "window", None)
    width = block.mixer.head_width(config.d_model)
    return found | {"num_local_experts": mixture.n_experts, "sliding_window": window, "head_dim": width}


FAMILIES = (
    Family(
        "mixtral",
        "MixtralForCausalLM",
        read_mixtral,
        partial(write, model_type="mixtral"),
        partial(rules, names=MIXTRAL),
        dialect=(FUSED, partial(rules, names=MIXTRAL, fused=True)),
    ),
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        read_olmoe,
        partial(write, model_type="olmoe"),
        partial(rules, names=Names()),
        dialect=(FUSED, partial(rules, names=Names(), fused=True)),
    ),
)
