"""T5 (arXiv 1910.10683): versions 1.0 and 1.1, with it Flan-T5 and ByT5; and mT5 (arXiv 2010.11934).

Whether the map to logits is the embedding's own matrix is decided by what is there: a tensor `lm_head.weight` is a
matrix of its own. Hidden states are scaled before that map if `scale_decoder_outputs` says so, and where that is absent
unless `tie_word_embeddings` is false, which is how version 1.1 was first told from 1.0. mT5 never scales them.
UMT5, in which each layer has biases of its own for positions, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...base.feed_forward import PlainFeedForwardConfig, ReluFeedForwardConfig
from ...base.sockets import FeedForwardConfig
from ...base.stack import BlockConfig
from ...base.transformer import EncoderDecoderConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.compose import replace_parts
from ...enhancements.feed_forward.gelu import GELUFeedForwardConfig
from ...enhancements.feed_forward.glu import Activation, GatedFeedForwardConfig
from ...enhancements.feed_forward.silu import SiLUFeedForwardConfig
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...enhancements.position.t5_bias import T5BiasConfig
from ...models import HeadConfig, t5
from .attributes import Attributes
from .blocks import only_generation
from .family import Family, require
from .weights import Rule, same

GATES: dict[str, Activation] = {"gated-gelu": "gelu_tanh", "gated-silu": "silu", "gated-relu": "relu"}
FUNCTIONS = {"gated-gelu": "gelu_new", "gated-silu": "silu", "gated-relu": "relu"}


def read(attributes: Attributes, model_type: str = "t5") -> EncoderDecoderConfig:
    """Return the config that the attributes describe, with a tied map to logits."""
    d_model, n_layers = attributes.take("d_model", int), attributes.take("num_layers", int)
    dropout = attributes.take("dropout_rate", float, 0.1)
    feed_forward = _read_feed_forward(attributes, attributes.take("d_ff", int), dropout, model_type)
    sizes = attributes.take("vocab_size", int), d_model, attributes.take("num_heads", int), n_layers
    config = t5(*sizes, attributes.take("d_kv", int, 64), dropout=dropout)
    norm = RMSNormConfig(attributes.take("layer_norm_epsilon", float, 1e-6))
    n_buckets = attributes.take("relative_attention_num_buckets", int, 32)
    max_distance = attributes.take("relative_attention_max_distance", int, 128)
    config = replace_parts(config, RMSNormConfig, lambda _: norm)
    config = replace_parts(
        config, T5BiasConfig, lambda bias: replace(bias, n_buckets=n_buckets, max_distance=max_distance)
    )
    config = replace_parts(config, PlainFeedForwardConfig, lambda _: feed_forward)
    n_decoder_layers = attributes.take("num_decoder_layers", int, n_layers)
    decoder = replace(config.decoder, blocks=config.decoder.blocks[:1] * n_decoder_layers)
    tied = attributes.take("tie_word_embeddings", bool, True)
    scaled = model_type == "t5" and attributes.take("scale_decoder_outputs", bool, tied)
    attributes.only("is_decoder", False)
    attributes.take("n_positions", int, None)  # of the first releases, which have no longest sequence either
    attributes.take("classifier_dropout", float, None)
    only_generation(attributes)
    attributes.finish()
    return replace(config, decoder=decoder, lm_head=_head(d_model, scaled))


def _head(d_model: int, scaled: bool) -> HeadConfig:
    return HeadConfig(scale=d_model**-0.5) if scaled else HeadConfig()


def _read_feed_forward(
    attributes: Attributes, d_ff: int, dropout: float, model_type: str
) -> FeedForwardConfig:
    name = attributes.take("feed_forward_proj", str, "relu" if model_type == "t5" else "gated-gelu")
    known: dict[str, FeedForwardConfig] = {
        gate: GatedFeedForwardConfig(d_ff, dropout, activation=GATES[gate]) for gate in GATES
    }
    known |= {function: made for made, function in _plain(d_ff, dropout)}
    if name not in known:
        raise attributes.fault(f"has feed_forward_proj {name!r}, and only {', '.join(known)} can be loaded")
    attributes.only("is_gated_act", name in GATES)
    attributes.only("dense_act_fn", FUNCTIONS.get(name, name))
    return known[name]


def _plain(d_ff: int, dropout: float) -> list[tuple[PlainFeedForwardConfig, str]]:
    """The networks without a gate, and what they are called."""
    return [
        (ReluFeedForwardConfig(d_ff, dropout, bias=False), "relu"),
        (GELUFeedForwardConfig(d_ff, dropout, bias=False, form="tanh"), "gelu_new"),
        (GELUFeedForwardConfig(d_ff, dropout, bias=False), "gelu"),
        (SiLUFeedForwardConfig(d_ff, dropout, bias=False), "silu"),
    ]


def complete(config: EncoderDecoderConfig, names: frozenset[str]) -> EncoderDecoderConfig:
    """Return the config with a map to logits of its own where its tensors have one."""
    return replace(config, tie_embeddings="lm_head.weight" not in names)


def write(config: EncoderDecoderConfig, model_type: str = "t5") -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    block, bias = config.encoder.blocks[0], config.encoder.position
    require(isinstance(block, BlockConfig), "its blocks are not attention and feed-forward")
    require(isinstance(bias, T5BiasConfig), "its positions are not T5's biases")
    assert isinstance(block, BlockConfig) and isinstance(bias, T5BiasConfig)
    mixer, feed_forward, norm = block.mixer, block.feed_forward, block.norm
    require(isinstance(mixer, GroupedQueryAttentionConfig), "its attention is not T5's")
    require(isinstance(norm, RMSNormConfig), "its norm is not RMSNorm")
    assert isinstance(mixer, GroupedQueryAttentionConfig) and isinstance(norm, RMSNormConfig)
    name, width = _write_feed_forward(feed_forward)
    scaled = config.lm_head == _head(config.d_model, True)
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": mixer.head_width(config.d_model),
        "d_ff": width,
        "num_layers": len(config.encoder.blocks),
        "num_decoder_layers": len(config.decoder.blocks),
        "num_heads": mixer.n_heads,
        "relative_attention_num_buckets": bias.n_buckets,
        "relative_attention_max_distance": bias.max_distance,
        "dropout_rate": config.encoder.dropout,
        "layer_norm_epsilon": norm.epsilon,
        "feed_forward_proj": name,
        "tie_word_embeddings": config.tie_embeddings,
        "decoder_start_token_id": 0,
    }
    return found | {"scale_decoder_outputs": scaled} if model_type == "t5" else found


def _write_feed_forward(feed_forward: Any) -> tuple[str, int]:
    """The name and the width of a feed-forward network."""
    if isinstance(feed_forward, GatedFeedForwardConfig):
        names = [name for name, function in GATES.items() if function == feed_forward.activation]
        require(names, f"its gate is {feed_forward.activation}")
        return names[0], feed_forward.d_ff
    require(isinstance(feed_forward, PlainFeedForwardConfig), "its feed-forward network is not T5's")
    known = [name for made, name in _plain(feed_forward.d_ff, feed_forward.dropout) if made == feed_forward]
    require(known, "its feed-forward network has a bias, or an activation that T5 has no name for")
    return known[0], feed_forward.d_ff


def rules(config: EncoderDecoderConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("shared.weight", "embedding.weight")]
    for side in ("encoder", "decoder"):
        stack = getattr(config, side)
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found += [same(bias, f"{side}.position.table.weight")]
        found += [same(f"{side}.final_layer_norm.weight", f"{side}.norm.weight")]
        for layer, block in enumerate(stack.blocks):
            found += _block(f"{side}.block.{layer}.layer", f"{side}.blocks.{layer}", block)
    return found if config.tie_embeddings else [*found, same("lm_head.weight", "lm_head.weight")]


def _block(theirs: str, ours: str, block: Any) -> list[Rule]:
    """The sub-layers of a block, which they number."""
    gated = isinstance(block.feed_forward, GatedFeedForwardConfig)
    inner = {"wi_0": "gate_proj", "wi_1": "up_proj"} if gated else {"wi": "up_proj"}
    attention = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    parts = [
        ("mixer", "SelfAttention", attention),
        ("feed_forward", "DenseReluDense", inner | {"wo": "down_proj"}),
    ]
    if block.cross_attention is not None:
        parts.insert(1, ("cross_attention", "EncDecAttention", attention))
    found = []
    for number, (part, module, names) in enumerate(parts):
        found += [same(f"{theirs}.{number}.layer_norm.weight", f"{ours}.{part}.norm.weight")]
        found += [
            same(f"{theirs}.{number}.{module}.{name}.weight", f"{ours}.{part}.branch.{path}.weight")
            for name, path in names.items()
        ]
    return found


IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
"""Second names of the embedding, and a table that the first releases had and never used."""


def _family(model_type: str, architecture: str) -> Family:
    return Family(
        model_type,
        architecture,
        partial(read, model_type=model_type),
        partial(write, model_type=model_type),
        rules,
        "",
        IGNORED,
        complete,
        kind=EncoderDecoderConfig,
    )


FAMILIES = (
    _family("t5", "T5ForConditionalGeneration"),
    _family("mt5", "MT5ForConditionalGeneration"),
)
