"""The families: each a function from hyper-parameters to a config over shared parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from ..base.embedding import LinearHeadConfig
from ..base.sockets import Config, Execution
from ..base.transformer import EncoderDecoder, EncoderDecoderConfig, transformer
from ..enhancements.attention.naive import naive_attention
from ..enhancements.catalog import CATALOG
from .bert import BERT, bert
from .decoder import DecoderOnly, DecoderOnlyConfig
from .detection_head import DetectionHeadConfig
from .encoder_decoder import Transformer
from .encoder_only import EncoderOnly, EncoderOnlyConfig
from .factorized import NarrowEmbeddingConfig, ProjectedInputStackConfig
from .gpt import GPT, gpt
from .head import HeadConfig
from .heads import SequenceClassifier, SequenceClassifierConfig, classifier
from .hybrid import hybrid, jamba, samba
from .llama import LLaMA, llama
from .mamba import Mamba, mamba, mamba2
from .masked_head import MaskedHeadConfig, NoHeadConfig
from .palm import palm
from .pooler import MeanPoolerConfig, NoPoolerConfig, PoolerConfig
from .recurrent_gemma import recurrent_gemma
from .t5 import T5, t5

ModelConfig: TypeAlias = (
    EncoderDecoderConfig | DecoderOnlyConfig | EncoderOnlyConfig | SequenceClassifierConfig
)
Model: TypeAlias = EncoderDecoder | DecoderOnly | EncoderOnly | SequenceClassifier

FAMILIES: Mapping[str, Callable[..., ModelConfig]] = MappingProxyType(
    {
        "transformer": transformer,
        "gpt": gpt,
        "llama": llama,
        "palm": palm,
        "bert": bert,
        "t5": t5,
        "mamba": mamba,
        "mamba2": mamba2,
        "recurrent_gemma": recurrent_gemma,
        "hybrid": hybrid,
    }
)
"""The name of each family in a config file, and its function from hyper-parameters to a config."""

KINDS: Mapping[str, type[Config]] = MappingProxyType(
    {
        **CATALOG,
        EncoderDecoderConfig.kind: EncoderDecoderConfig,
        DecoderOnlyConfig.kind: DecoderOnlyConfig,
        EncoderOnlyConfig.kind: EncoderOnlyConfig,
        SequenceClassifierConfig.kind: SequenceClassifierConfig,
        LinearHeadConfig.kind: LinearHeadConfig,
        HeadConfig.kind: HeadConfig,
        MaskedHeadConfig.kind: MaskedHeadConfig,
        NoHeadConfig.kind: NoHeadConfig,
        DetectionHeadConfig.kind: DetectionHeadConfig,
        NarrowEmbeddingConfig.kind: NarrowEmbeddingConfig,
        ProjectedInputStackConfig.kind: ProjectedInputStackConfig,
        PoolerConfig.kind: PoolerConfig,
        MeanPoolerConfig.kind: MeanPoolerConfig,
        NoPoolerConfig.kind: NoPoolerConfig,
    }
)
"""The catalog of parts, and the models they make up: what `utils.codec.decode` needs to read a model's config."""


def build(config: ModelConfig, execution: Execution | None = None) -> Model:
    """Build the model that a config describes, with first weights from PyTorch's current random state."""
    execution = execution or Execution(naive_attention)
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config, execution)
    if isinstance(config, SequenceClassifierConfig):
        return config.build(execution)
    if isinstance(config, EncoderOnlyConfig):
        return EncoderOnly(config, execution)
    return DecoderOnly(config, execution)


__all__ = [
    "BERT",
    "FAMILIES",
    "GPT",
    "KINDS",
    "T5",
    "DecoderOnly",
    "DecoderOnlyConfig",
    "DetectionHeadConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "EncoderOnly",
    "EncoderOnlyConfig",
    "HeadConfig",
    "LLaMA",
    "Mamba",
    "MaskedHeadConfig",
    "MeanPoolerConfig",
    "Model",
    "ModelConfig",
    "NarrowEmbeddingConfig",
    "NoHeadConfig",
    "NoPoolerConfig",
    "PoolerConfig",
    "ProjectedInputStackConfig",
    "SequenceClassifier",
    "SequenceClassifierConfig",
    "Transformer",
    "bert",
    "build",
    "classifier",
    "gpt",
    "hybrid",
    "jamba",
    "llama",
    "mamba",
    "mamba2",
    "palm",
    "recurrent_gemma",
    "samba",
    "t5",
    "transformer",
]
