"""DeepSeek-V2 (arXiv 2405.04434) and DeepSeek-V3 (arXiv 2412.19437): latent attention, and experts beside a shared one.

The first layers have a plain gated network. V2 chooses by a softmax, the best groups of experts first; V3 by sigmoid
scores with a bias that balances without a loss. Positions turn neighbouring dimensions, and with YaRN the scale of the
scores grows. V3's extra layers that predict tokens further ahead are not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...enhancements.architecture.moe.losses import (
    BalanceLossConfig,
    RouterLossConfig,
    SequenceBalanceLossConfig,
)
from ...enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from ...enhancements.architecture.moe.routing import RouterConfig
from ...enhancements.architecture.moe.sigmoid import SigmoidTopKConfig
from ...enhancements.architecture.moe.softmax import SoftmaxBeforeTopKConfig
from ...enhancements.attention.multi_head_latent import MultiHeadLatentAttentionConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...enhancements.position.rope import RotaryPositionConfig
from ...enhancements.position.yarn import YaRNRopeScalingConfig
from ...models import DecoderOnlyConfig
from . import experts
from .attributes import Attributes
from .experts import FUSED, Names, decoder, first_mixture, norm_of, refuse_quantized
from .family import Family, require
from .rope import rope_of, write_rope
from .weights import Rule, linear, same, stacked

KNOWN = {"hidden_act": "silu", "attention_bias": False, "pretraining_tp": 1, "moe_layer_freq": 1}
"""Attributes that have one meaning here."""
IGNORED = (
    "head_dim",
    "qk_head_dim",
    "num_key_value_heads",
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "ep_size",
)
"""Numbers that follow from others, or are about what is not read."""


def read_second(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of DeepSeek-V2 describe."""
    attributes.only("mlp_bias", False)
    attributes.only("norm_topk_prob", False)
    attributes.only("scoring_func", "softmax")
    method = attributes.take("topk_method", str, "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise attributes.fault(
            f"has topk_method {method!r}, and only greedy or group_limited_greedy can be loaded"
        )
    groups = _groups(attributes)
    return _read(
        attributes, SoftmaxBeforeTopKConfig, groups if method != "greedy" else {}, 1.0, "interleaved"
    )


def read_third(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of DeepSeek-V3 describe."""
    attributes.only("topk_method", "noaux_tc")
    attributes.only("scoring_func", "sigmoid")
    settings = {"renormalize": attributes.take("norm_topk_prob", bool, True), **_groups(attributes)}
    layout = "interleaved" if attributes.take("rope_interleave", bool, True) else "half"
    return _read(attributes, SigmoidTopKConfig, settings, 2.5, layout)


def _groups(attributes: Attributes) -> dict[str, Any]:
    names = {"n_groups": "n_group", "top_groups": "topk_group"}
    return {ours: attributes.take(theirs, int, 1) for ours, theirs in names.items()}


def _read(
    attributes: Attributes, kind: type[RouterConfig], settings: dict[str, Any], scale: float, layout: Any
) -> DecoderOnlyConfig:
    """Return the decoder of what the two have in common."""
    refuse_quantized(attributes)
    for name, value in KNOWN.items():
        attributes.only(name, value)
    for name in IGNORED:
        attributes.take(name, int, None)
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    norm = RMSNormConfig(attributes.take("rms_norm_eps", float, 1e-6))
    position, factor = _positions(attributes, layout)
    mixer = _attention(attributes, factor)
    width = attributes.take("moe_intermediate_size", int)
    top_k = attributes.take("num_experts_per_tok", int)
    shared = attributes.take("n_shared_experts", int, 0) * width
    mixture = MixtureOfExpertsConfig(
        attributes.take("n_routed_experts", int),
        GatedFeedForwardConfig(width),
        kind(top_k, scale=attributes.take("routed_scaling_factor", float, scale), **settings),
        GatedFeedForwardConfig(shared) if shared else None,
        losses=_losses(attributes),
    )
    dense = GatedFeedForwardConfig(attributes.take("intermediate_size", int))
    first = attributes.take("first_k_dense_replace", int, 0)
    layers = [(mixer, dense if i < first else mixture) for i in range(n_layers)]
    return decoder(attributes, d_model, layers, norm, position)


def _losses(attributes: Attributes) -> tuple[RouterLossConfig, ...]:
    attributes.take("output_router_logits", bool, False)
    weight, whole = attributes.take("aux_loss_alpha", float, 0.0), attributes.take("seq_aux", bool, True)
    kind = SequenceBalanceLossConfig if whole else BalanceLossConfig
    return (kind(weight),) if weight else ()


def _positions(attributes: Attributes, layout: Any) -> tuple[RotaryPositionConfig, float]:
    """Return the rotary position, and what the scale of the scores is multiplied by."""
    length, base = (
        attributes.take("max_position_embeddings", int, 4096),
        attributes.take("rope_theta", float, 1e4),
    )
    older, newer = attributes.section("rope_scaling"), attributes.section("rope_parameters")
    section = newer or older
    if section is None:
        return rope_of(None, length, base, layout=layout), 1.0
    every, own = section.take("mscale_all_dim", float, 0.0), section.take("mscale", float, 0.0)
    position = rope_of(section, length, base, layout=layout)
    scaling = position.scaling
    if not isinstance(scaling, YaRNRopeScalingConfig):
        return position, 1.0
    if every and own and scaling.attention_factor is None:
        ratio = _growth(scaling.factor, own) / _growth(scaling.factor, every)
        position = replace(position, scaling=replace(scaling, attention_factor=ratio))
    return position, _growth(scaling.factor, every) ** 2


def _growth(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _attention(attributes: Attributes, factor: float) -> MultiHeadLatentAttentionConfig:
    content, rotary = (
        attributes.take("qk_nope_head_dim", int, 128),
        attributes.take("qk_rope_head_dim", int, 64),
    )
    if content + rotary < 1:
        raise attributes.fault(f"has heads of width {content + rotary}, which must be 1 or more")
    return MultiHeadLatentAttentionConfig(
        attributes.take("num_attention_heads", int),
        attributes.take("kv_lora_rank", int),
        attributes.take("q_lora_rank", int, None),
        content,
        rotary,
        attributes.take("v_head_dim", int, 128),
        attributes.take("attention_dropout", float, 0.0),
        None if factor == 1 else (content + rotary) ** -0.5 * factor,
    )


def write(config: DecoderOnlyConfig, model_type: str) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    mixer, position = config.stack.blocks[0].mixer, config.stack.position  # type: ignore[attr-defined]
    require(isinstance(mixer, MultiHeadLatentAttentionConfig), "its mixer is not latent attention")
    require(isinstance(position, RotaryPositionConfig), "its positions are not rotary")
    assert isinstance(position, RotaryPositionConfig)
    _, mixture = first_mixture(config)
    found = _write_networks(config) | {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_heads,
        "kv_lora_rank": mixer.kv_rank,
        "q_lora_rank": mixer.q_rank,
        "qk_nope_head_dim": mixer.d_content,
        "qk_rope_head_dim": mixer.d_rotary,
        "v_head_dim": mixer.d_value,
        "attention_dropout": mixer.dropout,
        "rms_norm_eps": norm_of(config).epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": position.max_seq_len or 4096,
        "rope_parameters": _write_positions(position, mixer),
    }
    if model_type == "deepseek_v2":
        return found | {"topk_method": "greedy" if mixture.router.n_groups == 1 else "group_limited_greedy"}
    interleaved = position.layout == "interleaved"
    renormalize = getattr(mixture.router, "renormalize", True)
    return found | {
        "norm_topk_prob": renormalize,
        "rope_interleave": interleaved,
        "num_nextn_predict_layers": 0,
    }


def _write_networks(config: DecoderOnlyConfig) -> dict[str, Any]:
    """The attributes of the plain networks and of the mixtures."""
    first, mixture = first_mixture(config)
    blocks: Any = config.stack.blocks
    router, width = mixture.router, mixture.experts.d_ff  # type: ignore[attr-defined]
    shared = getattr(mixture.shared, "d_ff", 0)
    require(shared % width == 0, "its shared network is not as wide as some experts together")
    found = {
        "num_hidden_layers": len(blocks),
        "intermediate_size": blocks[0].feed_forward.d_ff if first else width,
        "moe_intermediate_size": width,
        "first_k_dense_replace": first,
        "n_routed_experts": mixture.n_experts,
        "n_shared_experts": shared // width,
        "num_experts_per_tok": router.top_k,
        "n_group": router.n_groups,
        "topk_group": router.top_groups,
        "routed_scaling_factor": router.scale,
        "hidden_act": "silu",
    }
    for loss in mixture.losses:
        found |= {"aux_loss_alpha": loss.weight, "seq_aux": isinstance(loss, SequenceBalanceLossConfig)}
    return found


def _write_positions(position: RotaryPositionConfig, mixer: MultiHeadLatentAttentionConfig) -> dict[str, Any]:
    found = write_rope(position)
    if mixer.scale is not None:
        growth = math.sqrt(mixer.scale * (mixer.d_content + mixer.d_rotary) ** 0.5)
        require(found.get("factor", 1) > 1, "the scale of its scores is not that of YaRN")
        found["mscale_all_dim"] = round((growth - 1) / (0.1 * math.log(found["factor"])), 9)
    return found


def rules(config: DecoderOnlyConfig, fused: bool = False) -> Sequence[Rule]:
    """How the weights of both families are called."""
    found = list(experts.rules(config, Names(), fused))
    blocks: Any = config.stack.blocks
    for layer, block in enumerate(blocks):
        theirs, ours = f"model.layers.{layer}", f"stack.blocks.{layer}"
        found += _attention_rules(block.mixer, f"{theirs}.self_attn", f"{ours}.mixer.branch")
        if isinstance(getattr(block.feed_forward, "router", None), SigmoidTopKConfig):
            bias = f"{ours}.feed_forward.branch.router.selection.bias"
            found.append(same(f"{theirs}.mlp.gate.e_score_correction_bias", bias))
    return found


def _attention_rules(mixer: Any, theirs: str, ours: str) -> list[Rule]:
    """How the weights of latent attention are called; the maps from the latent to keys and values are one there."""
    require(isinstance(mixer, MultiHeadLatentAttentionConfig), "its mixer is not latent attention")
    names = {"kv_a_layernorm": "kv_norm", "o_proj": "out_proj"}
    if mixer.q_rank is None:
        names |= {"q_proj": "q_up_proj"}
    else:
        names |= {"q_a_proj": "q_down_proj", "q_a_layernorm": "q_norm", "q_b_proj": "q_up_proj"}
    found = [rule for name, path in names.items() for rule in linear(f"{theirs}.{name}", f"{ours}.{path}")]
    sizes = [mixer.kv_rank, mixer.d_rotary]
    down = [f"{ours}.{name}.weight" for name in ("kv_down_proj", "k_rotary_proj")]
    found.append(stacked(f"{theirs}.kv_a_proj_with_mqa.weight", down, sizes))

    def split(x: Sequence[Tensor]) -> list[Tensor]:
        heads = rearrange(x[0], "(h e) r -> h e r", h=mixer.n_heads)
        halves = torch.split(heads, [mixer.d_content, mixer.d_value], dim=1)
        return [rearrange(half, "h e r -> (h e) r") for half in halves]

    def join(x: Sequence[Tensor]) -> list[Tensor]:
        heads = [rearrange(half, "(h e) r -> h e r", h=mixer.n_heads) for half in x]
        return [rearrange(torch.cat(heads, dim=1), "h e r -> (h e) r")]

    up = (f"{ours}.k_up_proj.weight", f"{ours}.v_up_proj.weight")
    return [*found, Rule((f"{theirs}.kv_b_proj.weight",), up, split, join)]


FAMILIES = tuple(
    Family(
        model_type,
        f"{name}ForCausalLM",
        read,
        partial(write, model_type=model_type),
        rules,
        dialect=(FUSED, partial(rules, fused=True)),
    )
    for model_type, name, read in (
        ("deepseek_v2", "DeepseekV2", read_second),
        ("deepseek_v3", "DeepseekV3", read_third),
    )
)
