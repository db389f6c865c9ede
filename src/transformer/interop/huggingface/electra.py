"""ELECTRA (arXiv 2003.10555): BERT as a discriminator, which scores each token; its embedding may be narrower.

Only the discriminator is read: of the generator one would take BERT's masked-token head with another transformation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...models import (
    DetectionHeadConfig,
    EncoderOnlyConfig,
    MaskedHeadConfig,
    NarrowEmbeddingConfig,
    NoHeadConfig,
    NoPoolerConfig,
    ProjectedInputStackConfig,
)
from . import bert
from .attributes import Attributes
from .family import Family, require
from .weights import Rule, linear


def read(attributes: Attributes) -> EncoderOnlyConfig:
    """Return the config that the attributes describe, with the discriminator's head."""
    d_embedding = attributes.take("embedding_size", int, 128)
    for name, kind in (
        ("summary_type", str),
        ("summary_use_proj", bool),
        ("summary_activation", str),
        ("summary_last_dropout", float),
    ):
        attributes.take(name, kind, None)  # of heads for other tasks
    config = bert.read(attributes)
    assert isinstance(config.lm_head, MaskedHeadConfig)
    head = DetectionHeadConfig(config.lm_head.form)
    config = replace(config, lm_head=head, tie_embeddings=False)
    return config if d_embedding == config.d_model else narrowed(config, d_embedding)


def narrowed(config: EncoderOnlyConfig, d_embedding: int) -> EncoderOnlyConfig:
    """The config with embeddings of this width."""
    stack = {
        name: getattr(config.stack, name) for name in ("blocks", "position", "norm", "dropout", "input_norm")
    }
    embedding = {name: getattr(config.embedding, name) for name in ("scaled", "n_segments")}
    return replace(
        config,
        stack=ProjectedInputStackConfig(**stack, d_embedding=d_embedding),
        embedding=NarrowEmbeddingConfig(**embedding, d_embedding=d_embedding),
    )


def complete(config: EncoderOnlyConfig, names: frozenset[str]) -> EncoderOnlyConfig:
    """Return the config without the head, where no tensor is its."""
    if any(name.startswith("discriminator_predictions.") for name in names):
        return config
    return replace(config, lm_head=NoHeadConfig())


def write(config: EncoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    head = isinstance(config.lm_head, DetectionHeadConfig)
    require(head or isinstance(config.lm_head, NoHeadConfig), "it has no score for each token")
    require(isinstance(config.pooler, NoPoolerConfig), "it has a pooler")
    found = bert.write(config)
    del found["tie_word_embeddings"]
    found.pop("architectures", None)
    narrow = config.embedding
    width = narrow.d_embedding if isinstance(narrow, NarrowEmbeddingConfig) else config.d_model
    return found | {"embedding_size": width} | ({} if head else {"architectures": ["ElectraModel"]})


def rules(config: EncoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [*bert.rules(replace(config, lm_head=NoHeadConfig(), tie_embeddings=False), "electra")]
    if isinstance(config.stack, ProjectedInputStackConfig):
        found += linear("electra.embeddings_project", "stack.input_proj", bias=True)
    if isinstance(config.lm_head, DetectionHeadConfig):
        found += linear("discriminator_predictions.dense", "lm_head.dense", bias=True)
        found += linear("discriminator_predictions.dense_prediction", "lm_head", bias=True)
    return found


FAMILIES = (
    Family(
        "electra",
        "ElectraForPreTraining",
        read,
        write,
        rules,
        "electra.",
        (".embeddings.position_ids",),
        complete,
        bert.current_name,
        EncoderOnlyConfig,
    ),
)
