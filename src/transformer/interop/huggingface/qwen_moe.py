"""Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671), and Qwen3-MoE (arXiv 2505.09388).

Qwen2-MoE: biases on queries, keys and values; narrow experts by a softmax before the choice, and one network for every
token with a gate of its own. Qwen3-MoE: QK-norm, no such network, gates divided by their sum. In both some layers may
have a plain gated network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...base.sockets import FeedForwardConfig
from ...enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from ...enhancements.architecture.moe.softmax import SoftmaxBeforeTopKConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.feed_forward.token_gated import TokenGatedFeedForwardConfig
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
from .llama import read_windows
from .rope import read_rope, write_rope

NAMES = Names(shared="shared_expert")


def read_second(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of Qwen2-MoE describe."""
    n_layers = attributes.take("num_hidden_layers", int)
    if attributes.has("layer_types"):
        windows = read_windows(attributes, n_layers)
    else:  # which layers the window is for was told differently over time
        attributes.only("use_sliding_window", False)
        attributes.take("sliding_window", int, None)
        attributes.take("max_window_layers", int, 0)
        windows = [None] * n_layers
    bias = attributes.take("qkv_bias", bool, True)
    width = attributes.take("shared_expert_intermediate_size", int, 5632)
    shared = TokenGatedFeedForwardConfig(GatedFeedForwardConfig(width))
    return _read(attributes, windows, shared, lambda norm: {"bias": bias, "out_bias": False})


def read_third(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of Qwen3-MoE describe."""
    n_layers = attributes.take("num_hidden_layers", int)
    window = attributes.take("sliding_window", int, None)
    attributes.take("max_window_layers", int, 0)
    windows = [window if attributes.take("use_sliding_window", bool, False) else None] * n_layers
    return _read(attributes, windows, None, lambda norm: {"qk_norm": norm})


def _read(
    attributes: Attributes,
    windows: list[int | None],
    shared: FeedForwardConfig | None,
    settings: Callable[[RMSNormConfig], dict[str, Any]],
) -> DecoderOnlyConfig:
    """Return the decoder of what the two have in common."""
    refuse_quantized(attributes)
    attributes.only("hidden_act", "silu")
    d_model, norm = (
        attributes.take("hidden_size", int),
        RMSNormConfig(attributes.take("rms_norm_eps", float, 1e-6)),
    )
    router = SoftmaxBeforeTopKConfig(
        attributes.take("num_experts_per_tok", int),
        renormalize=attributes.take("norm_topk_prob", bool, False),
    )
    mixture = MixtureOfExpertsConfig(
        either(attributes, int, ("num_experts", "num_local_experts")),
        GatedFeedForwardConfig(attributes.take("moe_intermediate_size", int)),
        router,
        shared,
        losses=read_balance(attributes),
    )
    dense = GatedFeedForwardConfig(attributes.take("intermediate_size", int))
    step, plain = attributes.take("decoder_sparse_step", int, 1), attributes.take("mlp_only_layers", list, [])
    if step < 1:
        raise attributes.fault(f"has decoder_sparse_step {step}, which must be 1 or more")
    parts = [dense if i in plain or (i + 1) % step else mixture for i in range(len(windows))]
    mixers = read_attention(attributes, d_model, windows, settings(norm))
    position = read_rope(attributes, attributes.take("max_position_embeddings", int, 32768))
    return decoder(attributes, d_model, list(zip(mixers, parts, strict=True)), norm, position)


def write(config: DecoderOnlyConfig, model_type: str) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    found, (_, mixture) = grouped_attributes(config), first_mixture(config)
    blocks: Any = config.stack.blocks
    experts: Any = mixture.experts
    router: Any = mixture.router
    plain = [i for i, block in enumerate(blocks) if block.feed_forward != mixture]
    windows = [getattr(block.mixer, "window", None) for block in blocks]
    local = [window for window in windows if window is not None]
    found |= write_balance(mixture) | {
        "intermediate_size": blocks[plain[0]].feed_forward.d_ff if plain else experts.d_ff,
        "moe_intermediate_size": experts.d_ff,
        "mlp_only_layers": plain,
        "decoder_sparse_step": 1,
        "num_experts": mixture.n_experts,
        "num_experts_per_tok": router.top_k,
        "norm_topk_prob": getattr(router, "renormalize", False),
        "hidden_act": "silu",
        "rms_norm_eps": norm_of(config).epsilon,
        "use_sliding_window": bool(local),
        "sliding_window": local[0] if local else None,
        "rope_parameters": write_rope(config.stack.position),  # type: ignore[arg-type]
    }
    if model_type == "qwen3_moe":
        return found | {"head_dim": blocks[0].mixer.head_width(config.d_model)}
    del found["attention_bias"]
    shared: Any = mixture.shared
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return found | {
        "qkv_bias": blocks[0].mixer.bias,
        "layer_types": kinds,
        "shared_expert_intermediate_size": shared.inner.d_ff,
    }


FAMILIES = tuple(
    Family(
        model_type,
        f"{name}ForCausalLM",
        read,
        partial(write, model_type=model_type),
        partial(rules, names=NAMES),
        dialect=(FUSED, partial(rules, names=NAMES, fused=True)),
    )
    for model_type, name, read in (
        ("qwen2_moe", "Qwen2Moe", read_second),
        ("qwen3_moe", "Qwen3Moe", read_third),
    )
)
