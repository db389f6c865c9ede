"""Mamba, Mamba-2 and FalconMamba (arXiv 2312.00752, 2405.21060, 2410.05355): stacks of mixers and nothing else.

FalconMamba is Mamba whose B, C and what becomes Δ are normalized, without a gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...base.normalization import NoNormConfig
from ...base.position import NoPositionConfig
from ...base.sockets import MixerConfig, NormConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PreNormConfig
from ...enhancements.normalization.non_parametric_rms_norm import NonParametricRMSNormConfig
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...enhancements.ssm.initialization import MambaInitializationConfig
from ...enhancements.ssm.mamba import MambaConfig
from ...enhancements.ssm.mamba2 import Mamba2Config
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import either
from .family import Family, require
from .weights import Rule, linear, reordered, same

NO_LIMIT = [0.0, {"__float__": "Infinity"}]
"""The limits of Mamba-2's steps as `transformers` writes those that limit nothing."""


def read(attributes: Attributes, inner_norm: NormConfig = NoNormConfig()) -> DecoderOnlyConfig:  # noqa: B008 (frozen)
    """Return the config of Mamba that the attributes describe, with this norm within its mixers."""
    d_model = either(attributes, int, ("hidden_size", "d_model"))
    names = ("intermediate_size", "d_inner")
    d_inner = either(attributes, int, names, attributes.take("expand", int, 2) * d_model)
    rank = (
        None if attributes.takes("time_step_rank", "auto") else attributes.take("time_step_rank", int, None)
    )
    d_inner, rank = widths(d_model, d_inner, rank)
    mixer = MambaConfig(
        d_inner, attributes.take("state_size", int, 16), rank, *_outer(attributes), inner_norm
    )
    for name in ("use_mambapy", "use_associative_scan", "fused_add_norm"):  # how to compute
        attributes.take(name, bool, False)
    attributes.only("rms_norm", True)
    attributes.only("ssm_cfg", {})
    attributes.take("pad_vocab_size_multiple", int, 1)  # vocab_size is padded already
    return _model(attributes, d_model, mixer, tied=True)


def read_falcon(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config of FalconMamba that the attributes describe."""
    attributes.take("use_falcon_mambapy", bool, False)  # how to compute
    return read(attributes, NonParametricRMSNormConfig(attributes.take("mixer_rms_eps", float, 1e-6)))


def read2(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config of Mamba-2 that the attributes describe."""
    d_model, n_heads = attributes.take("hidden_size", int), attributes.take("num_heads", int, 128)
    d_head, d_state = attributes.take("head_dim", int, 64), attributes.take("state_size", int, 128)
    d_inner = attributes.take("expand", int, 2) * d_model
    if d_inner != n_heads * d_head:
        raise attributes.fault(
            f"has num_heads {n_heads} of head_dim {d_head} for an inner width of {d_inner}"
        )
    groups, epsilon = attributes.take("n_groups", int, 8), attributes.take("layer_norm_epsilon", float, 1e-5)
    mixer = Mamba2Config(widths(d_model, d_inner)[0], d_state, d_head, groups, *_outer(attributes), epsilon)
    attributes.only("time_step_limit", NO_LIMIT, [0.0, math.inf])
    attributes.take("chunk_size", int, 256)  # how to compute
    if not attributes.takes("time_step_rank", "auto"):
        attributes.take(
            "time_step_rank", int, 0
        )  # of Mamba; here a head's step is a map of the block's input
    return _model(attributes, d_model, mixer, tied=False, epsilon=epsilon)


def widths(d_model: int, d_inner: int, dt_rank: int | None = None) -> tuple[int | None, int | None]:
    """The inner width and the rank of Δ; null where they are the usual ones, as our families have them."""
    usual = math.ceil(d_model / 16)
    return None if d_inner == 2 * d_model else d_inner, None if dt_rank == usual else dt_rank


def _outer(attributes: Attributes) -> tuple[int, bool, bool]:
    """What both mixers have: the convolution's size and bias, and the bias of the outer maps."""
    attributes.only("hidden_act", "silu")
    attributes.take("residual_in_fp32", bool, True)  # a precision, not a function
    for name in ("min", "max", "floor", "scale"):  # first weights, as are the next two
        attributes.take(f"time_step_{name}", float, None)
    attributes.take("time_step_init_scheme", str, None)
    attributes.take("rescale_prenorm_residual", bool, False)
    convolution, bias = attributes.take("conv_kernel", int, 4), attributes.take("use_bias", bool, False)
    return convolution, attributes.take("use_conv_bias", bool, True), bias


def _model(
    attributes: Attributes, d_model: int, mixer: MixerConfig, tied: bool, epsilon: float | None = None
) -> DecoderOnlyConfig:
    """A model of such mixers; `tied` says what the attribute is where it is absent."""
    norm = RMSNormConfig(epsilon or attributes.take("layer_norm_epsilon", float, 1e-5))
    n_layers = either(attributes, int, ("num_hidden_layers", "n_layer"))
    block = BlockConfig(mixer, None, wiring=PreNormConfig(0.0), norm=norm)
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, NoPositionConfig(), norm, 0.0),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, tied),
        initialization=MambaInitializationConfig(),
    )
    attributes.finish()
    return config


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe a config of Mamba; `OtherFamilyError` where none do."""
    found, mixer = _write_first(config)
    require(isinstance(mixer.inner_norm, NoNormConfig), "its mixers have norms inside")
    return found


def write_falcon(config: Any) -> dict[str, Any]:
    """Return the attributes that describe a config of FalconMamba; `OtherFamilyError` where none do."""
    found, mixer = _write_first(config)
    norm = mixer.inner_norm
    require(isinstance(norm, NonParametricRMSNormConfig), "its mixers have no norms without a gain inside")
    return found | {"mixer_rms_eps": norm.epsilon}


def _write_first(config: Any) -> tuple[dict[str, Any], Any]:
    """The attributes that Mamba and FalconMamba share, and the mixer."""
    found, mixer = _write(config, MambaConfig)
    rank = mixer.dt_rank or -(-config.d_model // 16)
    inner = {"time_step_rank": rank, "intermediate_size": mixer.d_inner or 2 * config.d_model}
    return found | inner, mixer


def write2(config: Any) -> dict[str, Any]:
    """Return the attributes that describe a config of Mamba-2; `OtherFamilyError` where none do."""
    found, mixer = _write(config, Mamba2Config)
    inner = mixer.d_inner or 2 * config.d_model
    return found | {
        "num_heads": inner // mixer.d_head,
        "head_dim": mixer.d_head,
        "n_groups": mixer.n_groups,
        "time_step_limit": NO_LIMIT,
    }


def _write(config: Any, kind: type[MixerConfig]) -> tuple[dict[str, Any], Any]:
    """The attributes that both have, and the mixer."""
    block = config.stack.blocks[0]
    require(isinstance(block, BlockConfig) and block.feed_forward is None, "its blocks are not mixers alone")
    require(isinstance(block.mixer, kind), f"its mixers are not {kind.kind}")
    require(isinstance(block.norm, RMSNormConfig), "its norm is not RMSNorm")
    mixer: Any = block.mixer
    inner = mixer.d_inner or 2 * config.d_model
    require(inner % config.d_model == 0, "its inner width is no multiple of d_model")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.stack.blocks),
        "expand": inner // config.d_model,
        "state_size": mixer.d_state,
        "conv_kernel": mixer.convolution,
        "use_conv_bias": mixer.conv_bias,
        "use_bias": mixer.bias,
        "layer_norm_epsilon": block.norm.epsilon,
        "tie_word_embeddings": config.tie_embeddings,
    }, mixer


def mixer_rules(theirs: str, ours: str, mixer: Any) -> list[Rule]:
    """How the weights of a mixer of either kind are called."""
    convolution, names = f"{theirs}.conv1d", ["in_proj", "out_proj"]
    found = [
        reordered(
            f"{convolution}.weight",
            f"{ours}.convolution.weight",
            lambda x: x[:, 0].flip(1),
            lambda x: x.flip(1)[:, None],
        ),
        *(same(f"{theirs}.{name}", f"{ours}.{name}") for name in ("A_log", "D")),
    ]
    if mixer.conv_bias:
        found.append(same(f"{convolution}.bias", f"{ours}.convolution.bias"))
    for name in names:
        found += linear(f"{theirs}.{name}", f"{ours}.{name}", mixer.bias)
    if isinstance(mixer, Mamba2Config):
        return [
            *found,
            same(f"{theirs}.dt_bias", f"{ours}.dt_bias"),
            *linear(f"{theirs}.norm", f"{ours}.norm"),
        ]
    found += linear(f"{theirs}.x_proj", f"{ours}.x_proj")
    return [*found, *linear(f"{theirs}.dt_proj", f"{ours}.dt_proj", bias=True)]


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights of either are called."""
    found = [same("backbone.embeddings.weight", "embedding.weight"), *linear("backbone.norm_f", "stack.norm")]
    for layer, block in enumerate(config.stack.blocks):
        assert isinstance(block, BlockConfig)
        theirs, ours = f"backbone.layers.{layer}", f"stack.blocks.{layer}.mixer"
        found += mixer_rules(f"{theirs}.mixer", f"{ours}.branch", block.mixer)
        found += linear(f"{theirs}.norm", f"{ours}.norm")
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (
    Family("mamba", "MambaForCausalLM", read, write, rules, "backbone."),
    Family("falcon_mamba", "FalconMambaForCausalLM", read_falcon, write_falcon, rules, "backbone."),
    Family("mamba2", "Mamba2ForCausalLM", read2, write2, rules, "backbone."),
)
