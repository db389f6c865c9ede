"""DistilBERT (arXiv 1910.01108): BERT with half the layers, without segments and pooler, under names of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.attention import MultiHeadAttentionConfig
from ...base.embedding import EmbeddingConfig
from ...base.normalization import LayerNormConfig
from ...base.position import LearnedPositionConfig
from ...base.stack import BlockConfig
from ...base.wiring import PostNormConfig
from ...enhancements.architecture.bert_input import NormedInputStackConfig
from ...enhancements.feed_forward.gelu import GELUFeedForwardConfig
from ...enhancements.initialization import TruncatedNormalConfig
from ...models import EncoderOnlyConfig, MaskedHeadConfig, NoHeadConfig
from .attributes import Attributes
from .bert import complete, encoder_parts
from .blocks import FORMS, NAMES
from .family import Family, require
from .weights import Rule, linear, same

NORM = LayerNormConfig(1e-12)
"""Of every norm; no attribute says it."""


def read(attributes: Attributes) -> EncoderOnlyConfig:
    """Return the config that the attributes describe, with a map to logits."""
    d_model, n_layers = attributes.take("dim", int, 768), attributes.take("n_layers", int, 6)
    heads, width = attributes.take("n_heads", int, 12), attributes.take("hidden_dim", int, 3072)
    name = attributes.take("activation", str, "gelu")
    if name not in FORMS:
        raise attributes.fault(f"has activation {name!r}, and only {', '.join(FORMS)} can be loaded")
    dropout = attributes.take("dropout", float, 0.1)
    attributes.take("sinusoidal_pos_embds", bool, False)  # first weights only: the table is in the file
    for other_task in ("qa_dropout", "seq_classif_dropout"):
        attributes.take(other_task, float, 0.0)
    block = BlockConfig(
        MultiHeadAttentionConfig(heads, attributes.take("attention_dropout", float, 0.1), bias=True),
        GELUFeedForwardConfig(width, dropout=0.0, form=FORMS[name]),
        wiring=PostNormConfig(dropout),
        norm=NORM,
    )
    position = LearnedPositionConfig(attributes.take("max_position_embeddings", int, 512))
    config = EncoderOnlyConfig(
        attributes.take("vocab_size", int, 30522),
        d_model,
        NormedInputStackConfig((block,) * n_layers, position, dropout=dropout, input_norm=NORM),
        EmbeddingConfig(scaled=False),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        initialization=TruncatedNormalConfig(),
        lm_head=MaskedHeadConfig(NORM, FORMS[name]),
    )
    attributes.finish()
    return config


def write(config: EncoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack, position = config.stack, config.stack.position
    require(isinstance(position, LearnedPositionConfig), "its positions are not learned")
    require(isinstance(stack, NormedInputStackConfig), "its embeddings are not normalized")
    mixer, feed_forward, _, dropout = encoder_parts(stack.blocks[0])
    assert isinstance(position, LearnedPositionConfig)
    headless = isinstance(config.lm_head, NoHeadConfig)
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "dim": config.d_model,
        "n_layers": len(stack.blocks),
        "n_heads": mixer.n_heads,
        "hidden_dim": feed_forward.d_ff,
        "activation": NAMES[feed_forward.form],
        "dropout": dropout,
        "attention_dropout": mixer.dropout,
        "max_position_embeddings": position.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings or headless,
    }
    return found | ({"architectures": ["DistilBertModel"]} if headless else {})


def rules(config: EncoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    embeddings = "distilbert.embeddings"
    found = [
        same(f"{embeddings}.word_embeddings.weight", "embedding.weight"),
        same(f"{embeddings}.position_embeddings.weight", "stack.position.table.weight"),
        *linear(f"{embeddings}.LayerNorm", "stack.input_norm", bias=True),
    ]
    for layer in range(len(config.stack.blocks)):
        theirs, ours = f"distilbert.transformer.layer.{layer}", f"stack.blocks.{layer}"
        for name, path in (
            ("attention.q_lin", "mixer.branch.q_proj"),
            ("attention.k_lin", "mixer.branch.k_proj"),
            ("attention.v_lin", "mixer.branch.v_proj"),
            ("attention.out_lin", "mixer.branch.out_proj"),
            ("sa_layer_norm", "mixer.norm"),
            ("ffn.lin1", "feed_forward.branch.up_proj"),
            ("ffn.lin2", "feed_forward.branch.down_proj"),
            ("output_layer_norm", "feed_forward.norm"),
        ):
            found += linear(f"{theirs}.{name}", f"{ours}.{path}", bias=True)
    if isinstance(config.lm_head, NoHeadConfig):
        return found
    found += linear("vocab_transform", "lm_head.dense", bias=True)
    found += linear("vocab_layer_norm", "lm_head.norm", bias=True)
    found.append(same("vocab_projector.bias", "lm_head.bias"))
    if not config.tie_embeddings:
        found.append(same("vocab_projector.weight", "lm_head.weight"))
    return found


FAMILIES = (
    Family(
        "distilbert",
        "DistilBertForMaskedLM",
        read,
        write,
        rules,
        "distilbert.",
        ("embeddings.position_ids", "vocab_projector.weight"),
        complete,
        kind=EncoderOnlyConfig,
    ),
)
