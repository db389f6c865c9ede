"""MPNet (arXiv 2004.09297): RoBERTa without segments, with a relative bias of T5's buckets on top of its positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...base.embedding import EmbeddingConfig
from ...base.position import LearnedPositionConfig
from ...enhancements.architecture.bert_input import SegmentedEmbeddingConfig
from ...enhancements.position.combined import CombinedPositionConfig
from ...enhancements.position.t5_bias import T5BiasConfig
from ...models import EncoderOnlyConfig, NoHeadConfig
from . import bert
from .attributes import Attributes
from .family import Family, OtherFamilyError, require
from .weights import Rule, same

N_BUCKETS, MAX_DISTANCE, PAD = 32, 128, 1
"""Of the bias, and the padding token, before whose row and its own no position stands; no attribute says them."""
RENAMED = {
    "attention.self.query": "attention.attn.q",
    "attention.self.key": "attention.attn.k",
    "attention.self.value": "attention.attn.v",
    "attention.output.dense": "attention.attn.o",
    "attention.output.LayerNorm": "attention.LayerNorm",
}
"""Parts of names in BERT's files, and in MPNet's."""


def read(attributes: Attributes) -> EncoderOnlyConfig:
    """Return the config that the attributes describe, with a map to logits and without a pooler."""
    attributes.only("relative_attention_num_buckets", N_BUCKETS)
    attributes.only("pad_token_id", PAD)  # the code counts on it, whatever the attribute says
    config = bert.read(attributes, roberta=True)
    heads = bert.encoder_parts(config.stack.blocks[0])[0].n_heads
    positions = (config.stack.position, T5BiasConfig(heads, "bidirectional", N_BUCKETS, MAX_DISTANCE))
    return replace(
        config,
        stack=replace(config.stack, position=CombinedPositionConfig(positions)),
        embedding=EmbeddingConfig(scaled=False),
    )


def write(config: EncoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    found = bert.write(_roberta(config), roberta=True)
    del found["type_vocab_size"]
    found["relative_attention_num_buckets"] = N_BUCKETS
    return found | ({"architectures": ["MPNetModel"]} if isinstance(config.lm_head, NoHeadConfig) else {})


def rules(config: EncoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    plain = bert.rules(_roberta(config), "roberta")
    kept = [rule for rule in plain if not any("token_type" in name for name in rule.theirs)]
    found = [
        replace(rule, theirs=tuple(map(_mpnet, rule.theirs)), ours=tuple(map(_nested, rule.ours)))
        for rule in kept
    ]
    return [
        *found,
        same("mpnet.encoder.relative_attention_bias.weight", "stack.position.schemes.1.table.weight"),
    ]


def _roberta(config: EncoderOnlyConfig) -> EncoderOnlyConfig:
    """The config without the bias, with one segment."""
    position = config.stack.position
    if not isinstance(position, CombinedPositionConfig) or len(position.schemes) != 2:
        raise OtherFamilyError("its positions are not learned ones with a bias")
    learned, bias = position.schemes
    heads = bert.encoder_parts(config.stack.blocks[0])[0].n_heads
    expected = T5BiasConfig(heads, "bidirectional", N_BUCKETS, MAX_DISTANCE)
    require(isinstance(learned, LearnedPositionConfig) and bias == expected, "its bias is another")
    require(type(config.embedding) is EmbeddingConfig, "its embedding is another")
    return replace(
        config,
        stack=replace(config.stack, position=learned),
        embedding=SegmentedEmbeddingConfig(n_segments=1),
    )


def _mpnet(name: str) -> str:
    name = name.replace("roberta.", "mpnet.", 1)
    for old, new in RENAMED.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def _nested(name: str) -> str:
    return name.replace("stack.position.", "stack.position.schemes.0.", 1)


FAMILIES = (
    Family(
        "mpnet",
        "MPNetForMaskedLM",
        read,
        write,
        rules,
        "mpnet.",
        bert.IGNORED,
        bert.complete,
        bert.current_name,
        EncoderOnlyConfig,
    ),
)
