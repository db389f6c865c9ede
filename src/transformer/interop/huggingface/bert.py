"""BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692; XLM-RoBERTa, arXiv 1911.02116).

RoBERTa is BERT trained longer, with other names. Its positions begin at row `pad_token_id` + 1 of their table, since
padding has a row of its own; ours begin at 0, where no row is kept for padding. A model may come without a pooler or
without a map to logits: the tensors that are there decide. The map that told whether two sentences follow each other
is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...base.attention import MultiHeadAttentionConfig
from ...base.normalization import LayerNormConfig
from ...base.position import LearnedPositionConfig
from ...base.stack import BlockConfig
from ...base.wiring import PostNormConfig
from ...enhancements.architecture.bert_input import NormedInputStackConfig, SegmentedEmbeddingConfig
from ...enhancements.feed_forward.gelu import GELUFeedForwardConfig
from ...enhancements.initialization import TruncatedNormalConfig
from ...models import (
    EncoderOnlyConfig,
    MaskedHeadConfig,
    MeanPoolerConfig,
    NoHeadConfig,
    NoPoolerConfig,
    PoolerConfig,
)
from .attributes import Attributes
from .blocks import FORMS, NAMES, only_head_of_another_task
from .family import Family, require
from .weights import Rule, Tensors, linear, reordered, same


def read(attributes: Attributes, roberta: bool = False) -> EncoderOnlyConfig:
    """Return the config that the attributes describe, with a map to logits and without a pooler."""
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    heads, width = attributes.take("num_attention_heads", int), attributes.take("intermediate_size", int)
    name = attributes.take("hidden_act", str, "gelu")
    if name not in FORMS:
        raise attributes.fault(f"has hidden_act {name!r}, and only {', '.join(FORMS)} can be loaded")
    norm = LayerNormConfig(attributes.take("layer_norm_eps", float, 1e-12))
    dropout = attributes.take("hidden_dropout_prob", float, 0.1)
    weights_dropout = attributes.take("attention_probs_dropout_prob", float, 0.1)
    n_positions = attributes.take("max_position_embeddings", int, 512)
    if roberta:
        n_positions -= attributes.take("pad_token_id", int, 1) + 1
    for switch in ("is_decoder", "add_cross_attention"):
        attributes.only(switch, False)
    attributes.only("position_embedding_type", "absolute")
    _only_notes(attributes)
    block = BlockConfig(
        MultiHeadAttentionConfig(heads, weights_dropout, bias=True),
        GELUFeedForwardConfig(width, form=FORMS[name]),
        wiring=PostNormConfig(dropout),
        norm=norm,
    )
    position = LearnedPositionConfig(n_positions)
    config = EncoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        NormedInputStackConfig((block,) * n_layers, position, dropout=dropout, input_norm=norm),
        SegmentedEmbeddingConfig(n_segments=attributes.take("type_vocab_size", int, 2)),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        initialization=TruncatedNormalConfig(),
        lm_head=MaskedHeadConfig(norm, "erf" if roberta else FORMS[name]),
    )
    attributes.finish()
    return config


def _only_notes(attributes: Attributes) -> None:
    """Pass over what some of the first published models say of themselves and no program reads."""
    only_head_of_another_task(attributes)
    attributes.take("directionality", str, None)
    attributes.take("pooler_type", str, None)
    for name in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head"):
        attributes.take(f"pooler_{name}", int, None)


def complete(config: EncoderOnlyConfig, names: frozenset[str]) -> EncoderOnlyConfig:
    """Return the config with the pooler and the map to logits that the names of its tensors speak of."""
    if any(name.endswith(".pooler.dense.weight") for name in names):
        config = replace(config, pooler=PoolerConfig())
    if not any(name.startswith(("cls.predictions.", "lm_head.", "vocab_")) for name in names):
        config = replace(config, lm_head=NoHeadConfig(), tie_embeddings=False)
    return config


def write(config: EncoderOnlyConfig, roberta: bool = False) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack, block, embedding = config.stack, config.stack.blocks[0], config.embedding
    position = stack.position
    require(isinstance(position, LearnedPositionConfig), "its positions are not learned")
    require(isinstance(stack, NormedInputStackConfig), "its embeddings are not normalized")
    require(isinstance(embedding, SegmentedEmbeddingConfig), "it has no segments")
    require(not isinstance(config.pooler, MeanPoolerConfig), "its pooler takes the mean of all tokens")
    mixer, feed_forward, norm, dropout = encoder_parts(block)
    assert isinstance(position, LearnedPositionConfig) and isinstance(embedding, SegmentedEmbeddingConfig)
    pad = 1  # RoBERTa's own; the row before our first position
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(stack.blocks),
        "num_attention_heads": mixer.n_heads,
        "intermediate_size": feed_forward.d_ff,
        "hidden_act": NAMES[feed_forward.form],
        "layer_norm_eps": norm.epsilon,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": mixer.dropout,
        "max_position_embeddings": position.max_seq_len + (pad + 1 if roberta else 0),
        "type_vocab_size": embedding.n_segments,
        "tie_word_embeddings": config.tie_embeddings or isinstance(config.lm_head, NoHeadConfig),
    }
    if roberta:
        found |= {"pad_token_id": pad}
    if isinstance(config.lm_head, NoHeadConfig):
        found |= {"architectures": ["RobertaModel" if roberta else "BertModel"]}
    return found


def encoder_parts(
    block: Any,
) -> tuple[MultiHeadAttentionConfig, GELUFeedForwardConfig, LayerNormConfig, float]:
    """Return attention, feed-forward network, norm and dropout of a block of BERT's kind."""
    require(
        isinstance(block, BlockConfig) and isinstance(block.wiring, PostNormConfig),
        "its blocks are not post-norm",
    )
    mixer, feed_forward, norm = block.mixer, block.feed_forward, block.norm
    require(isinstance(mixer, MultiHeadAttentionConfig), "its mixer is not the paper's attention")
    require(isinstance(feed_forward, GELUFeedForwardConfig), "its feed-forward network has not GELU")
    require(isinstance(norm, LayerNormConfig), "its norm is not LayerNorm")
    return mixer, feed_forward, norm, block.wiring.dropout


def rules(config: EncoderOnlyConfig, model: str = "bert") -> Sequence[Rule]:
    """How the weights are called."""
    embeddings = f"{model}.embeddings"
    found = [
        same(f"{embeddings}.word_embeddings.weight", "embedding.weight"),
        same(f"{embeddings}.token_type_embeddings.weight", "embedding.segments.weight"),
        _positions(f"{embeddings}.position_embeddings.weight", config, model),
        *linear(f"{embeddings}.LayerNorm", "stack.input_norm", bias=True),
    ]
    for layer in range(len(config.stack.blocks)):
        theirs, ours = f"{model}.encoder.layer.{layer}", f"stack.blocks.{layer}"
        for name, path in (
            ("attention.self.query", "mixer.branch.q_proj"),
            ("attention.self.key", "mixer.branch.k_proj"),
            ("attention.self.value", "mixer.branch.v_proj"),
            ("attention.output.dense", "mixer.branch.out_proj"),
            ("attention.output.LayerNorm", "mixer.norm"),
            ("intermediate.dense", "feed_forward.branch.up_proj"),
            ("output.dense", "feed_forward.branch.down_proj"),
            ("output.LayerNorm", "feed_forward.norm"),
        ):
            found += linear(f"{theirs}.{name}", f"{ours}.{path}", bias=True)
    if not isinstance(config.pooler, NoPoolerConfig):
        found += linear(f"{model}.pooler.dense", "pooler.dense", bias=True)
    if not isinstance(config.lm_head, NoHeadConfig):
        names = ("lm_head", "dense", "layer_norm")
        if model == "bert":
            names = ("cls.predictions", "transform.dense", "transform.LayerNorm")
        found += _head(*names, tied=config.tie_embeddings)
    return found


def _positions(theirs: str, config: EncoderOnlyConfig, model: str) -> Rule:
    """The table of positions, which in RoBERTa has rows before the first that a token can have."""
    ours = "stack.position.table.weight"
    if model != "roberta":
        return same(theirs, ours)
    assert isinstance(config.stack.position, LearnedPositionConfig)
    length = config.stack.position.max_seq_len
    return reordered(
        theirs, ours, lambda x: x[-length:], lambda x: torch.cat([x.new_zeros(2, x.shape[1]), x])
    )


def _head(path: str, dense: str, norm: str, tied: bool) -> list[Rule]:
    """The map to logits. Its bias has two names: one tensor where the matrix is tied, and else the decoder's counts."""
    found = linear(f"{path}.{dense}", "lm_head.dense", bias=True)
    found += linear(f"{path}.{norm}", "lm_head.norm", bias=True)
    if tied:
        return [*found, same(f"{path}.bias", "lm_head.bias")]
    names = (f"{path}.decoder.bias", f"{path}.bias")
    return [
        *found,
        same(f"{path}.decoder.weight", "lm_head.weight"),
        Rule(names, ("lm_head.bias",), _first, _twice),
    ]


def _first(tensors: Tensors) -> Tensors:
    return tensors[:1]


def _twice(tensors: Tensors) -> Tensors:
    return [tensors[0], tensors[0]]


def current_name(name: str) -> str:
    """The name of a tensor today: the first checkpoints called a norm's weight and bias gamma and beta."""
    for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


IGNORED = (
    ".embeddings.position_ids",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
)
"""Tables, the map of the next-sentence task, and second names of tied weights."""


def _family(model_type: str, architecture: str, model: str) -> Family:
    roberta = model == "roberta"
    return Family(
        model_type,
        architecture,
        partial(read, roberta=roberta),
        partial(write, roberta=roberta),
        partial(rules, model=model),
        f"{model}.",
        IGNORED,
        complete,
        current_name,
        EncoderOnlyConfig,
    )


FAMILIES = (
    _family("bert", "BertForMaskedLM", "bert"),
    _family("roberta", "RobertaForMaskedLM", "roberta"),
    _family("xlm-roberta", "XLMRobertaForMaskedLM", "roberta"),
)
