"""Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the text models of Gemma 3 (arXiv 2503.19786).

All three: embeddings times √d_model, RMSNorm with the gain 1 + g, a GELU gate in its tanh form, heads of a width of
their own. Gemma 2 adds a norm after each branch, soft caps of scores and logits, a window in every other layer and a
scale of its own; Gemma 3 has no caps, but QK-norm, and windows in five of six layers, which turn by another base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ...base.embedding import EmbeddingConfig
from ...base.sockets import WiringConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PreNormConfig
from ...enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.normalization.sandwich_norm import SandwichNormConfig
from ...enhancements.normalization.unit_offset_rms_norm import UnitOffsetRMSNormConfig
from ...enhancements.position.rope import RotaryPositionConfig
from ...models import DecoderOnlyConfig, HeadConfig
from .attributes import Attributes
from .family import Family, require
from .gated import PRE, SANDWICH, parts_of, read_attention, rules, write_attention
from .rope import read_rope, rope_of, write_rope
from .weights import Rule

FULL, LOCAL = "full_attention", "sliding_attention"
TANH = "gelu_pytorch_tanh"


def read_first(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of the first Gemma describe."""
    attributes.only("hidden_act", "gelu", TANH)  # the first releases say gelu, and mean the tanh form
    position = read_rope(attributes, attributes.take("max_position_embeddings", int))
    n_layers = attributes.take("num_hidden_layers", int)
    norm, wiring = _norm(attributes), PreNormConfig(0.0)
    return _model(attributes, norm, [None] * n_layers, (position, position), wiring, {})


def read_second(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of Gemma 2 describe."""
    attributes.only("hidden_act", TANH)
    position = read_rope(attributes, attributes.take("max_position_embeddings", int))
    return _model(
        attributes,
        _norm(attributes),
        _windows(attributes, 2),
        (position, position),
        SandwichNormConfig(0.0),
        {"soft_cap": attributes.nullable("attn_logit_softcapping", float, 50.0), "scale": _scale(attributes)},
        attributes.nullable("final_logit_softcapping", float, 30.0),
    )


def read_third(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of a text model of Gemma 3 describe."""
    attributes.only("hidden_act", TANH)
    attributes.only("attn_logit_softcapping")  # the published code knows the name, and caps nothing
    norm, every = _norm(attributes), attributes.take("sliding_window_pattern", int, 6)
    return _model(
        attributes,
        norm,
        _windows(attributes, every),
        _positions(attributes),
        SandwichNormConfig(0.0),
        {"qk_norm": norm, "scale": _scale(attributes)},
        attributes.nullable("final_logit_softcapping", float, None),
    )


def _model(
    attributes: Attributes,
    norm: UnitOffsetRMSNormConfig,
    windows: Sequence[int | None],
    positions: tuple[RotaryPositionConfig, RotaryPositionConfig],
    wiring: WiringConfig,
    settings: Mapping[str, Any],
    final_cap: float | None = None,
) -> DecoderOnlyConfig:
    """Return the model of what the three have in common. positions: of layers without and with a window."""
    attributes.only("hidden_activation", TANH)
    attributes.only("use_bidirectional_attention", False)
    attributes.only("cache_implementation", "hybrid", "static", "dynamic")  # how to decode
    attributes.only("_sliding_window_pattern", *range(1025))  # what layer_types were made of
    d_model = attributes.take("hidden_size", int)
    feed_forward = GatedFeedForwardConfig(attributes.take("intermediate_size", int), activation="gelu_tanh")
    full, local = positions
    blocks = [
        BlockConfig(
            mixer,
            feed_forward,
            wiring=wiring,
            norm=norm,
            position=local if isinstance(mixer, SlidingWindowAttentionConfig) and local != full else None,
        )
        for mixer in read_attention(attributes, d_model, windows, settings, 256)
    ]
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig(tuple(blocks), full, norm, 0.0),
        EmbeddingConfig(scaled=True),
        attributes.take("tie_word_embeddings", bool, True),
        GPT2Config(),
        HeadConfig(soft_cap=final_cap),
    )
    attributes.finish()
    return config


def _scale(attributes: Attributes) -> float:
    scalar = attributes.take("query_pre_attn_scalar", int, 256)
    if scalar < 1:
        raise attributes.fault(f"has query_pre_attn_scalar {scalar}, which must be 1 or more")
    return float(scalar**-0.5)


def _norm(attributes: Attributes) -> UnitOffsetRMSNormConfig:
    return UnitOffsetRMSNormConfig(attributes.take("rms_norm_eps", float, 1e-6))


def _windows(attributes: Attributes, every: int) -> list[int | None]:
    """The window of each layer; if no attribute says which have one, all but the last of each `every`."""
    n_layers = attributes.take("num_hidden_layers", int)
    window = attributes.take("sliding_window", int, 4096)
    kinds = attributes.take("layer_types", list, None)
    if kinds is None:
        if every < 1:
            raise attributes.fault(f"has sliding_window_pattern {every}, which must be 1 or more")
        kinds = [LOCAL if (layer + 1) % every else FULL for layer in range(n_layers)]
    if len(kinds) != n_layers or any(kind not in (FULL, LOCAL) for kind in kinds):
        raise attributes.fault(f"has layer_types other than {FULL} or {LOCAL} for each layer")
    return [window if kind == LOCAL else None for kind in kinds]


def _positions(attributes: Attributes) -> tuple[RotaryPositionConfig, RotaryPositionConfig]:
    """Gemma 3's rotary positions of layers without and with a window; only the former are ever scaled."""
    length = attributes.take("max_position_embeddings", int)
    local = attributes.take("rope_local_base_freq", float, 1e4)
    both = attributes.section("rope_parameters")
    if both is None:
        return read_rope(attributes, length, 1e6), RotaryPositionConfig(local, max_seq_len=length)
    attributes.only("rope_scaling")
    found = rope_of(both.section(FULL), length, 1e6), rope_of(both.section(LOCAL), length, local)
    both.finish()
    return found


def write(config: DecoderOnlyConfig, model_type: str) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    found, stack = write_attention(config), config.stack
    blocks: tuple[Any, ...] = stack.blocks
    first, _ = parts_of(blocks[0])
    norm, width = blocks[0].norm, first.head_width(config.d_model)
    require(isinstance(norm, UnitOffsetRMSNormConfig), "its norm is not RMSNorm with the gain 1 + g")
    found |= {"head_dim": width, "rms_norm_eps": norm.epsilon}
    if model_type == "gemma":
        return found | {"hidden_act": TANH, "rope_parameters": write_rope(_rotary(stack.position))}
    local = [block for block in blocks if isinstance(block.mixer, SlidingWindowAttentionConfig)]
    found |= {
        "hidden_activation": TANH,
        "layer_types": [LOCAL if block in local else FULL for block in blocks],
        "sliding_window": local[0].mixer.window if local else 4096,
        "query_pre_attn_scalar": width if first.scale is None else round(first.scale**-2),
        "final_logit_softcapping": config.lm_head.soft_cap,
        "rope_parameters": write_rope(_rotary(stack.position)),
    }
    if model_type == "gemma2":
        return found | {"attn_logit_softcapping": first.soft_cap}
    near = local[0].position if local and local[0].position is not None else stack.position
    return found | {
        "rope_parameters": {FULL: write_rope(_rotary(stack.position)), LOCAL: write_rope(_rotary(near))}
    }


def _rotary(position: Any) -> RotaryPositionConfig:
    require(isinstance(position, RotaryPositionConfig), "its positions are not rotary")
    assert isinstance(position, RotaryPositionConfig)
    return position


def _rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    sandwiched = isinstance(config.stack.blocks[0].wiring, SandwichNormConfig)  # type: ignore[attr-defined]
    return rules(config, SANDWICH if sandwiched else PRE)


FAMILIES = tuple(
    Family(model_type, f"{name}ForCausalLM", read, partial(write, model_type=model_type), _rules)
    for model_type, name, read in (
        ("gemma", "Gemma", read_first),
        ("gemma2", "Gemma2", read_second),
        ("gemma3_text", "Gemma3", read_third),
    )
)
