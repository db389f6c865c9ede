"""RecurrentGemma (arXiv 2404.07839): gated linear recurrences and attention to a window, in turn.

`intermediate_size` is twice the width of the feed-forward network. The embeddings' multiplier is √d_model as bfloat16
has it, in any precision (`rounded_root`). `block_types` is repeated over the depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.sockets import MixerConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PreNormConfig
from ...enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from ...enhancements.embedding import NormedEmbeddingConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.normalization.unit_offset_rms_norm import UnitOffsetRMSNormConfig
from ...enhancements.position.rope import RotaryPositionConfig
from ...enhancements.position.rope_scaling import NoRopeScalingConfig
from ...enhancements.ssm.rg_lru import RGLRUConfig
from ...models import DecoderOnlyConfig, HeadConfig
from ...models.recurrent_gemma import rounded_root
from .attributes import Attributes
from .family import Family, require
from .gated import attention_rules, read_attention
from .rope import read_rope, write_rope
from .weights import Rule, linear, reordered, same

RECURRENT, ATTENTION = "recurrent", "attention"
TANH = "gelu_pytorch_tanh"


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    attributes.only("hidden_activation", TANH)
    attributes.only("embeddings_scale_by_sqrt_dim", True)
    for name in ("w_init_variance_scale", "final_w_init_variance_scale"):  # first weights
        attributes.take(name, float, None)
    d_model = attributes.take("hidden_size", int)
    norm = UnitOffsetRMSNormConfig(attributes.take("rms_norm_eps", float, 1e-6))
    feed_forward = GatedFeedForwardConfig(_half_width(attributes), 0.0, True, "gelu_tanh")
    blocks = tuple(
        BlockConfig(mixer, feed_forward, wiring=PreNormConfig(0.0), norm=norm)
        for mixer in _mixers(attributes, d_model)
    )
    position = read_rope(attributes, None, fraction=attributes.take("partial_rotary_factor", float, 0.5))
    if not isinstance(position.scaling, NoRopeScalingConfig):
        raise attributes.fault(
            "has scaled rotary positions, and only those of rope_type default can be loaded"
        )
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig(blocks, position, norm, 0.0),
        NormedEmbeddingConfig(multiplier=rounded_root(d_model)),
        attributes.take("tie_word_embeddings", bool, True),
        GPT2Config(),
        HeadConfig(soft_cap=attributes.take("logits_soft_cap", float, 30.0)),
    )
    attributes.finish()
    return config


def _half_width(attributes: Attributes) -> int:
    """The width of the feed-forward network."""
    both: int = attributes.take("intermediate_size", int)
    if both % 2:
        raise attributes.fault(f"has intermediate_size {both}, which is not twice a width")
    return both // 2


def _mixers(attributes: Attributes, d_model: int) -> list[MixerConfig]:
    """The mixer of each layer."""
    n_layers = attributes.take("num_hidden_layers", int)
    kinds = attributes.take("block_types", list, [RECURRENT, RECURRENT, ATTENTION])
    if not kinds or any(kind not in (RECURRENT, ATTENTION) for kind in kinds):
        raise attributes.fault(f"has block_types that are not a list of {RECURRENT} and {ATTENTION}")
    width, convolution = attributes.take("lru_width", int, d_model), attributes.take("conv1d_width", int, 4)
    window = attributes.take("attention_window_size", int, 2048)
    (attention,) = read_attention(attributes, d_model, [window], {"out_bias": True})
    recurrence = RGLRUConfig(None if width == d_model else width, attention.n_heads, convolution)
    return [recurrence if kinds[i % len(kinds)] == RECURRENT else attention for i in range(n_layers)]


def write(config: DecoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    blocks: tuple[Any, ...] = config.stack.blocks
    first, position, embedding = blocks[0], config.stack.position, config.embedding
    require(isinstance(first, BlockConfig), "its blocks are not mixers and feed-forward networks")
    require(isinstance(first.feed_forward, GatedFeedForwardConfig), "its feed-forward network is not gated")
    require(isinstance(first.norm, UnitOffsetRMSNormConfig), "its norm is not RMSNorm with the gain 1 + g")
    require(isinstance(position, RotaryPositionConfig), "its positions are not rotary")
    assert isinstance(position, RotaryPositionConfig)
    rounded = NormedEmbeddingConfig(multiplier=rounded_root(config.d_model))
    require(embedding == rounded, "its embeddings are not multiplied by √d_model as bfloat16 has it")
    require(config.lm_head.soft_cap is not None, "its logits are not capped")
    rope = {"partial_rotary_factor": position.fraction, **write_rope(position)}
    return {
        **_write_mixers(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(blocks),
        "intermediate_size": 2 * first.feed_forward.d_ff,
        "hidden_activation": TANH,
        "rms_norm_eps": first.norm.epsilon,
        "rope_parameters": rope,
        "logits_soft_cap": config.lm_head.soft_cap,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _write_mixers(config: DecoderOnlyConfig) -> dict[str, Any]:
    """The attributes of the mixers; where layers of a kind are unlike, reading them again will show it."""
    mixers = [getattr(block, "mixer", None) for block in config.stack.blocks]
    recurrences = [mixer for mixer in mixers if isinstance(mixer, RGLRUConfig)]
    attentions = [mixer for mixer in mixers if isinstance(mixer, SlidingWindowAttentionConfig)]
    require(recurrences, "it has no layer with Griffin's recurrence")
    require(len(recurrences) + len(attentions) == len(mixers), "it has other mixers than the family's two")
    recurrence = recurrences[0]
    attention = (
        attentions[0]
        if attentions
        else SlidingWindowAttentionConfig(recurrence.n_heads, window=2048, out_bias=True)
    )
    return {
        "block_types": [RECURRENT if isinstance(mixer, RGLRUConfig) else ATTENTION for mixer in mixers],
        "lru_width": recurrence.d_inner or config.d_model,
        "conv1d_width": recurrence.convolution,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads or attention.n_heads,
        "head_dim": attention.head_width(config.d_model),
        "attention_window_size": attention.window,
        "attention_dropout": attention.dropout,
        "attention_bias": attention.bias,
    }


def recurrence_rules(theirs: str, ours: str) -> list[Rule]:
    """How the weights of a recurrent block are called; their convolution's last weight is of the token itself."""
    found = [
        reordered(
            f"{theirs}.conv_1d.weight",
            f"{ours}.convolution.weight",
            lambda x: x[:, 0].flip(1),
            lambda x: x.flip(1)[:, None],
        ),
        same(f"{theirs}.conv_1d.bias", f"{ours}.convolution.bias"),
        same(f"{theirs}.rg_lru.recurrent_param", f"{ours}.recurrence.decay"),
    ]
    for name, map_ in (("linear_y", "gate_proj"), ("linear_x", "in_proj"), ("linear_out", "out_proj")):
        found += linear(f"{theirs}.{name}", f"{ours}.{map_}", bias=True)
    for name, gate in (("recurrent_gate", "recurrence_gate"), ("input_gate", "input_gate")):
        for kind in ("weight", "bias"):
            found.append(same(f"{theirs}.rg_lru.{name}_{kind}", f"{ours}.recurrence.{gate}.{kind}"))
    return found


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("model.embed_tokens.weight", "embedding.weight"), *linear("model.final_norm", "stack.norm")]
    for layer, block in enumerate(config.stack.blocks):
        assert isinstance(block, BlockConfig)
        theirs, ours = f"model.layers.{layer}", f"stack.blocks.{layer}"
        mixer, inner = f"{theirs}.temporal_block", f"{ours}.mixer.branch"
        if isinstance(block.mixer, SlidingWindowAttentionConfig):
            found += attention_rules(block.mixer, mixer, inner)
        else:
            found += recurrence_rules(mixer, inner)
        for name in ("gate_proj", "up_proj", "down_proj"):
            found += linear(f"{theirs}.mlp_block.{name}", f"{ours}.feed_forward.branch.{name}", bias=True)
        found += linear(f"{theirs}.temporal_pre_norm", f"{ours}.mixer.norm")
        found += linear(f"{theirs}.channel_pre_norm", f"{ours}.feed_forward.norm")
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (Family("recurrent_gemma", "RecurrentGemmaForCausalLM", read, write, rules),)
