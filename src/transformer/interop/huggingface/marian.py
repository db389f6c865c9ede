"""Marian's translation models (arXiv 1804.00344; OPUS-MT): the 2017 Transformer with biases, another activation, and
sinusoids that have all sines before all cosines.

A decoder begins with the padding token, which is the last id, and must never write it; decoding leaves that to its
caller. Models with a vocabulary of their own for each language, or with embeddings that are not all one matrix, are
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.stack import StackConfig
from ...base.transformer import EncoderDecoderConfig
from ...enhancements.position.split_sinusoids import SplitSinusoidalPositionConfig
from .attributes import Attributes
from .bart import IGNORED, complete, read_blocks, read_model, shared_rules, write_model
from .family import Family, require
from .weights import Rule


def read(attributes: Attributes) -> EncoderDecoderConfig:
    """Return the config that the attributes describe."""
    attributes.only("normalize_embedding", False)
    attributes.only("static_position_embeddings", True)
    attributes.only("share_encoder_decoder_embeddings", True)
    attributes.take("extra_pos_embeddings", int, None)  # of another program
    one_vocabulary = attributes.take("decoder_vocab_size", int, None)
    position = SplitSinusoidalPositionConfig(attributes.take("max_position_embeddings", int, 1024))
    dropout = attributes.take("dropout", float, 0.1)
    stacks = [StackConfig(blocks, position, dropout=dropout) for blocks in read_blocks(attributes, dropout)]
    config = read_model(attributes, *stacks)
    if one_vocabulary not in (None, config.vocab_size):
        raise attributes.fault(
            f"has decoder_vocab_size {one_vocabulary}, and only {config.vocab_size} can be loaded"
        )
    return config


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    split = isinstance(config.encoder.position, SplitSinusoidalPositionConfig)
    require(split, "its positions are not sinusoids with all sines first")
    last = config.vocab_size - 1
    tokens = {
        "pad_token_id": last,
        "decoder_start_token_id": last,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }
    return write_model(config) | {"decoder_vocab_size": config.vocab_size} | tokens


def rules(config: EncoderDecoderConfig) -> Sequence[Rule]:
    """How the weights are called; the positions are a formula and have none."""
    return shared_rules(config)


FAMILIES = (
    Family(
        "marian", "MarianMTModel", read, write, rules, "model.", (*IGNORED, "embed_positions.weight"), complete,
        kind=EncoderDecoderConfig,
    ),
)  # fmt: skip
