"""Jamba (arXiv 2403.19887): Mamba, attention in one layer of so many, and experts in every so many.

Which layers those are, a period and an offset say. Mamba's Δ, B and C are normalized within the mixer; the gates of
the experts are the best of a softmax over all of them, not divided by their sum; there is no position scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ...base.position import NoPositionConfig
from ...base.sockets import FeedForwardConfig
from ...base.stack import BlockConfig
from ...enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from ...enhancements.architecture.moe.softmax import SoftmaxBeforeTopKConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...enhancements.ssm.mamba import MambaConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import either
from .experts import (
    FUSED,
    GATED,
    decoder,
    expert_rules,
    fused_rules,
    gated_rules,
    norm_of,
    read_balance,
    refuse_quantized,
    write_balance,
)
from .family import Family, require
from .gated import attention_rules, read_attention
from .mamba import mixer_rules, widths
from .weights import Rule, linear, same

INNER = {"dt_layernorm": "dt_norm", "b_layernorm": "B_norm", "c_layernorm": "C_norm"}
"""Their norms within the mixer, and ours."""


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    refuse_quantized(attributes)
    _pass_over(attributes)
    attributes.only("hidden_act", "silu")
    attributes.only("attention_bias", False)
    attributes.only("sliding_window")
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    norm = RMSNormConfig(attributes.take("rms_norm_eps", float, 1e-6))
    (attention,) = read_attention(attributes, d_model, [None], {})
    mamba, (dense, mixture) = _read_mamba(attributes, d_model, norm), _read_networks(attributes)
    attends = _every(attributes, "attn_layer", n_layers, (8, 4))
    mixes = _every(attributes, "expert_layer", n_layers, (2, 1))
    layers = [
        (attention if first else mamba, mixture if second else dense)
        for first, second in zip(attends, mixes, strict=True)
    ]
    return decoder(attributes, d_model, layers, norm, NoPositionConfig())


def _pass_over(attributes: Attributes) -> None:
    """Pass over how to compute, which logits to keep, and lengths that nothing is limited to."""
    for name in ("use_mamba_kernels", "use_mambapy", "use_associative_scan", "calc_logits_for_entire_prompt"):
        attributes.take(name, bool, False)
    for name in ("num_logits_to_keep", "max_position_embeddings", "n_ctx"):
        attributes.take(name, int, None)


def _read_mamba(attributes: Attributes, d_model: int, norm: RMSNormConfig) -> MambaConfig:
    """Return the mixer of the layers without attention."""
    attributes.only("mamba_inner_layernorms", True)
    rank = None if attributes.takes("mamba_dt_rank", "auto") else attributes.take("mamba_dt_rank", int, None)
    inner = attributes.take("mamba_expand", int, 2) * d_model
    d_inner, dt_rank = widths(d_model, inner, rank)
    return MambaConfig(
        d_inner,
        attributes.take("mamba_d_state", int, 16),
        dt_rank,
        attributes.take("mamba_d_conv", int, 4),
        attributes.take("mamba_conv_bias", bool, True),
        attributes.take("mamba_proj_bias", bool, False),
        norm,
    )


def _read_networks(attributes: Attributes) -> tuple[FeedForwardConfig, FeedForwardConfig]:
    """Return the plain network and the mixture of such; with one expert the second is the first."""
    dense = GatedFeedForwardConfig(attributes.take("intermediate_size", int))
    n_experts = either(attributes, int, ("num_experts", "num_local_experts"), 16)
    router = SoftmaxBeforeTopKConfig(attributes.take("num_experts_per_tok", int, 2))
    losses = read_balance(attributes)
    if n_experts == 1:
        return dense, dense
    return dense, MixtureOfExpertsConfig(n_experts, dense, router, losses=losses)


def _every(attributes: Attributes, name: str, n_layers: int, default: tuple[int, int]) -> list[bool]:
    """Which layers are of a kind: those whose number leaves the offset when divided by the period."""
    period, offset = (
        attributes.take(f"{name}_{part}", int, value)
        for part, value in zip(("period", "offset"), default, strict=True)
    )
    if not 0 <= offset < period:
        raise attributes.fault(
            f"has {name}_offset {offset}, which is not from 0 to below {name}_period {period}"
        )
    return [layer % period == offset for layer in range(n_layers)]


def write(config: DecoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    blocks: Sequence[Any] = config.stack.blocks
    require(all(isinstance(block, BlockConfig) for block in blocks), "its blocks are of other kinds")
    attends = [isinstance(block.mixer, GroupedQueryAttentionConfig) for block in blocks]
    require(True in attends, "it has no layer of attention by grouped heads")
    attention = blocks[attends.index(True)].mixer
    width = attention.head_width(config.d_model)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(blocks),
        **_write_period("attn_layer", attends),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads or attention.n_heads,
        **({"head_dim": width} if width * attention.n_heads != config.d_model else {}),
        "attention_dropout": attention.dropout,
        **_write_mamba(blocks, config.d_model),
        **_write_networks(blocks),
        "hidden_act": "silu",
        "rms_norm_eps": norm_of(config).epsilon,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _write_period(name: str, chosen: Sequence[bool]) -> dict[str, int]:
    """The least period that chooses these layers; `OtherFamilyError` if there is none."""
    offset, layers = chosen.index(True), range(len(chosen))
    periods = [
        period
        for period in range(offset + 1, len(chosen) + 1)
        if all((layer % period == offset) == chosen[layer] for layer in layers)
    ]
    require(periods, "its layers of one kind do not stand at equal distances")
    return {f"{name}_period": periods[0], f"{name}_offset": offset}


def _write_mamba(blocks: Sequence[Any], d_model: int) -> dict[str, Any]:
    """The attributes of the layers without attention."""
    mixers = [block.mixer for block in blocks if isinstance(block.mixer, MambaConfig)]
    require(mixers, "it has no layer of Mamba")
    mixer = mixers[0]
    inner = mixer.d_inner or 2 * d_model
    require(inner % d_model == 0, "its inner width is no multiple of d_model")
    return {
        "mamba_expand": inner // d_model,
        "mamba_d_state": mixer.d_state,
        "mamba_dt_rank": mixer.dt_rank or -(-d_model // 16),
        "mamba_d_conv": mixer.convolution,
        "mamba_conv_bias": mixer.conv_bias,
        "mamba_proj_bias": mixer.bias,
    }


def _write_networks(blocks: Sequence[Any]) -> dict[str, Any]:
    """The attributes of the plain networks and the mixtures."""
    mixes = [isinstance(block.feed_forward, MixtureOfExpertsConfig) for block in blocks]
    if True not in mixes:
        width = blocks[0].feed_forward.d_ff
        return {"intermediate_size": width, "num_experts": 1, "num_experts_per_tok": 1}
    mixture = blocks[mixes.index(True)].feed_forward
    return {
        "intermediate_size": mixture.experts.d_ff,
        "num_experts": mixture.n_experts,
        "num_experts_per_tok": mixture.router.top_k,
        **_write_period("expert_layer", mixes),
        **write_balance(mixture),
    }


def rules(config: DecoderOnlyConfig, fused: bool = False) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("model.embed_tokens.weight", "embedding.weight")]
    found += linear("model.final_layernorm", "stack.norm")
    for layer, block in enumerate(config.stack.blocks):
        assert isinstance(block, BlockConfig)
        theirs, ours = f"model.layers.{layer}", f"stack.blocks.{layer}"
        found += _mixer_rules(block.mixer, theirs, f"{ours}.mixer.branch")
        found += _network_rules(
            block.feed_forward, f"{theirs}.feed_forward", f"{ours}.feed_forward.branch", fused
        )
        found += linear(f"{theirs}.input_layernorm", f"{ours}.mixer.norm")
        found += linear(f"{theirs}.pre_ff_layernorm", f"{ours}.feed_forward.norm")
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def _mixer_rules(mixer: Any, layer: str, ours: str) -> list[Rule]:
    """How the weights of attention or of Mamba are called."""
    if isinstance(mixer, GroupedQueryAttentionConfig):
        return attention_rules(mixer, f"{layer}.self_attn", ours)
    norms = [same(f"{layer}.mamba.{name}.weight", f"{ours}.{path}.weight") for name, path in INNER.items()]
    return mixer_rules(f"{layer}.mamba", ours, mixer) + norms


def _network_rules(part: Any, theirs: str, ours: str, fused: bool) -> list[Rule]:
    """How the weights of a plain network or of a mixture are called."""
    if not isinstance(part, MixtureOfExpertsConfig):
        return gated_rules(theirs, ours)
    experts = fused_rules(theirs, ours) if fused else expert_rules(theirs, ours, part.n_experts, GATED)
    return [same(f"{theirs}.router.weight", f"{ours}.router.proj.weight"), *experts]


FAMILIES = (
    Family("jamba", "JambaForCausalLM", read, write, rules, dialect=(FUSED, partial(rules, fused=True))),
)
