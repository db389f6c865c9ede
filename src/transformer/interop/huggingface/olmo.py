"""OLMo (arXiv 2402.00838) and OLMo 2 (arXiv 2501.00656): LLaMA with norms of another kind, and in another place.

OLMo's LayerNorm has nothing to learn. OLMo 2 normalizes by RMSNorm what each branch adds, not what it reads, and its
queries and keys over all heads together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ...base.normalization import NoNormConfig
from ...base.sockets import NormConfig, WiringConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PreNormConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.normalization.non_parametric_layer_norm import NonParametricLayerNormConfig
from ...enhancements.normalization.post_sublayer_norm import PostSublayerNormConfig
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .family import Family, require
from .gated import AFTER, NONE, read_attention, rules, write_attention
from .rope import read_rope, write_rope
from .weights import Rule


def read_first(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of the first OLMo describe."""
    attributes.only("clip_qkv")
    return _model(attributes, NonParametricLayerNormConfig(), PreNormConfig(0.0), NoNormConfig())


def read_second(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes of OLMo 2 describe."""
    norm = RMSNormConfig(attributes.take("rms_norm_eps", float, 1e-5))
    return _model(attributes, norm, PostSublayerNormConfig(0.0), norm)


def _model(
    attributes: Attributes, norm: NormConfig, wiring: WiringConfig, qk_norm: NormConfig
) -> DecoderOnlyConfig:
    for name, *values in (("hidden_act", "silu"), ("pretraining_tp", 1)):
        attributes.only(name, *values)
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    feed_forward = GatedFeedForwardConfig(attributes.take("intermediate_size", int))
    over = "head" if isinstance(qk_norm, NoNormConfig) else "projection"
    mixers = read_attention(
        attributes, d_model, [None] * n_layers, {"qk_norm": qk_norm, "qk_norm_over": over}
    )
    blocks = [BlockConfig(mixer, feed_forward, wiring=wiring, norm=norm) for mixer in mixers]
    position = read_rope(attributes, attributes.take("max_position_embeddings", int, 2048))
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig(tuple(blocks), position, norm, 0.0),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, False),
        initialization=GPT2Config(),
    )
    attributes.finish()
    return config


def write(config: DecoderOnlyConfig, model_type: str) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    found, norm = write_attention(config), config.stack.norm
    found |= {"hidden_act": "silu", "rope_parameters": write_rope(config.stack.position)}  # type: ignore[arg-type]
    if model_type == "olmo":
        require(isinstance(norm, NonParametricLayerNormConfig), "its norm is not LayerNorm without gain")
        return found
    require(isinstance(norm, RMSNormConfig), "its norm is not RMSNorm")
    return found | {"rms_norm_eps": norm.epsilon}  # type: ignore[attr-defined]


def _rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    return rules(config, NONE if isinstance(config.stack.norm, NonParametricLayerNormConfig) else AFTER)


FAMILIES = (
    Family("olmo", "OlmoForCausalLM", read_first, partial(write, model_type="olmo"), _rules),
    Family("olmo2", "Olmo2ForCausalLM", read_second, partial(write, model_type="olmo2"), _rules),
)
