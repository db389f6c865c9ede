"""GPT-Neo (Black et al. 2021): layers that see all and layers that see a window, in turn, and products not scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.normalization import LayerNormConfig
from ...base.position import LearnedPositionConfig
from ...base.stack import StackConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from ...enhancements.initialization import GPT2Config
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import (
    Parts,
    only_head_of_another_task,
    parts_of,
    paths_of,
    projections,
    read_feed_forward,
    write_feed_forward,
)
from .family import Family, require
from .weights import Rule, linear, same


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_layers", int)
    norm = LayerNormConfig(attributes.take("layer_norm_epsilon", float, 1e-5))
    common: dict[str, Any] = {
        "n_heads": attributes.take("num_heads", int),
        "dropout": attributes.take("attention_dropout", float, 0.0),
        "out_bias": True,
        "scale": 1.0,
    }
    window = attributes.take("window_size", int, 256)
    kinds = {
        "global": GroupedQueryAttentionConfig(**common),
        "local": SlidingWindowAttentionConfig(**common, window=window),
    }
    width = attributes.take("intermediate_size", int, 4 * d_model)
    feed_forward = read_feed_forward(attributes, "activation_function", "gelu_new", width)
    dropout = attributes.take("resid_dropout", float, 0.0)
    blocks = [
        Parts(kinds[kind], feed_forward, norm, dropout).block() for kind in _layers(attributes, n_layers)
    ]
    position = LearnedPositionConfig(attributes.take("max_position_embeddings", int, 2048))
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig(tuple(blocks), position, norm, attributes.take("embed_dropout", float, 0.0)),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        initialization=GPT2Config(),
    )
    only_head_of_another_task(attributes)
    attributes.finish()
    return config


def _layers(attributes: Attributes, n_layers: int) -> list[str]:
    """The kind of each layer, which attributes give as patterns and how often each is repeated."""
    found: list[str] = []
    for item in attributes.take("attention_types", list, [[["global", "local"], 12]]):
        match item:
            case [list(pattern), int(times)] if 0 <= times <= n_layers:
                found += pattern * times
            case _:
                raise attributes.fault(
                    "has attention_types other than pairs of a pattern and how often it is repeated"
                )
    if len(found) != n_layers or any(kind not in ("global", "local") for kind in found):
        raise attributes.fault("has attention_types other than global or local for each of its num_layers")
    attributes.only("attention_layers", found)
    return found


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    layers: list[Any] = [parts_of(block) for block in stack.blocks]
    first = layers[0]
    require(isinstance(stack.position, LearnedPositionConfig), "its positions are not learned")
    windows = [getattr(parts.mixer, "window", None) for parts in layers]
    kinds = ["global" if window is None else "local" for window in windows]
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_layers": len(layers),
        "num_heads": first.mixer.n_heads,
        "attention_types": [[kinds, 1]],
        "attention_layers": kinds,
        "window_size": next((window for window in windows if window is not None), 256),
        "intermediate_size": first.feed_forward.d_ff,
        "activation_function": write_feed_forward(first.feed_forward),
        "layer_norm_epsilon": first.norm.epsilon,
        "attention_dropout": first.mixer.dropout,
        "resid_dropout": first.dropout,
        "embed_dropout": stack.dropout,
        "max_position_embeddings": stack.position.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [
        same("transformer.wte.weight", "embedding.weight"),
        same("transformer.wpe.weight", "stack.position.table.weight"),
    ]
    for layer in range(len(config.stack.blocks)):
        ours, theirs = paths_of(layer, "sequential"), f"transformer.h.{layer}"
        found += projections(f"{theirs}.attn.attention", ours.mixer, "out_proj", bias=False, out_bias=True)
        found += linear(f"{theirs}.mlp.c_fc", f"{ours.feed_forward}.up_proj", bias=True)
        found += linear(f"{theirs}.mlp.c_proj", f"{ours.feed_forward}.down_proj", bias=True)
        found += linear(f"{theirs}.ln_1", ours.mixer_norm, bias=True)
        found += linear(f"{theirs}.ln_2", ours.feed_forward_norm, bias=True)
    found += linear("transformer.ln_f", "stack.norm", bias=True)
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (
    Family(
        "gpt_neo",
        "GPTNeoForCausalLM",
        read,
        write,
        rules,
        "transformer.",
        (".attn.attention.bias", ".attn.attention.masked_bias"),
    ),
)
