"""Enhancements are functions of configs: what they change, what they leave, and that their order does not matter."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.catalog import decoder_block, decoder_only, make
from transformer.base.normalization import LayerNormConfig, NoNormConfig
from transformer.base.position import LearnedPositionConfig, SinusoidalPositionConfig
from transformer.base.sockets import OutputProjection
from transformer.base.transformer import transformer
from transformer.base.wiring import PostNormConfig, PreNormConfig
from transformer.enhancements import enhance, gelu, pre_norm, replace_parts, rms_norm, rope
from transformer.enhancements.feed_forward.gelu import GELUFeedForwardConfig
from transformer.enhancements.normalization.rms_norm import RMSNormConfig
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.models import GPT, gpt

ALL = {"pre_norm": pre_norm(), "rms_norm": rms_norm(), "rope": rope(), "gelu": gelu()}


@pytest.mark.parametrize("order", list(itertools.permutations(ALL)), ids="-".join)
def test_the_order_of_enhancements_does_not_matter(order: tuple[str, ...]) -> None:
    config = transformer(100, 16, 2, 2)
    enhanced = enhance(config, *(ALL[name] for name in order))
    assert enhanced == enhance(config, *ALL.values())
    for stack in (enhanced.encoder, enhanced.decoder):
        assert stack.norm == RMSNormConfig() and stack.position == RotaryPositionConfig()
        for block in stack.blocks:
            assert block.wiring == PreNormConfig(0.1) and block.norm == RMSNormConfig()
            assert block.feed_forward == GELUFeedForwardConfig(64)


@pytest.mark.parametrize("name", ALL)
def test_an_enhancement_applied_twice_is_applied_once_and_keeps_the_rest(name: str) -> None:
    config = transformer(100, 16, 2, 2, dropout=0.25)
    once = enhance(config, ALL[name])
    assert once != config
    assert enhance(config, ALL[name], ALL[name]) == once
    assert config == transformer(100, 16, 2, 2, dropout=0.25)
    assert enhance(config) == config


def test_each_enhancement_changes_what_it_says() -> None:
    config = transformer(100, 16, 2, 1)
    assert config.encoder.norm == NoNormConfig() and config.encoder.blocks[0].wiring == PostNormConfig()
    assert enhance(config, pre_norm()).encoder.norm == LayerNormConfig()
    assert enhance(config, rms_norm()).encoder.norm == NoNormConfig()
    assert enhance(config, rope(5.0)).decoder.position == RotaryPositionConfig(5.0)
    assert enhance(config, gelu("tanh")).encoder.blocks[0].feed_forward == GELUFeedForwardConfig(
        64, form="tanh"
    )
    learned = replace_parts(
        config, SinusoidalPositionConfig, lambda old: LearnedPositionConfig(old.max_seq_len)
    )
    assert learned.encoder.position == LearnedPositionConfig(1024)


def test_gpt_is_a_decoder_enhanced() -> None:
    """GPT-2 is the paper's decoder block without cross-attention, pre-norm, with GELU, biases and learned positions."""
    config = gpt(100, 16, 2, 2)
    block = config.stack.blocks[0]
    assert enhance(config, pre_norm()) == config
    assert enhance(config, gelu("tanh")) == config
    assert block.cross_attention is None and block.mixer.bias and block.mixer.dropout == 0.1
    assert config.stack.position == LearnedPositionConfig(1024) and not config.embedding.scaled


def test_gpt2_first_weights() -> None:
    """N(0, 0.02²); 0.02/√(2L) where a branch writes to the stream; zero biases (Radford et al. 2019, §2.3)."""
    model = GPT(vocab_size=2000, d_model=256, n_heads=4, n_layers=3, max_seq_len=500)
    outputs = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            writes = isinstance(module, OutputProjection)
            outputs += writes
            assert abs(module.weight.std().item() / (0.02 / 6**0.5 if writes else 0.02) - 1) < 0.02
            assert getattr(module, "bias", None) is None or not module.bias.any()
    assert outputs == 6


def test_a_position_that_embeds_is_refused_for_one_block() -> None:
    block = decoder_block(position=SinusoidalPositionConfig(8))
    message = (
        r"^a block's own position acts inside its mixer, but SinusoidalPosition is added to the embeddings; "
        r"give it to the stack, or the block one that rotates or biases$"
    )
    with pytest.raises(ValueError, match=message):
        make(decoder_only(block))
    make(decoder_only(replace(block, position=RotaryPositionConfig())))


def test_gelu_forms_differ_from_each_other_and_from_relu() -> None:
    x = torch.linspace(-3, 3, 7)[None, :, None]
    parts = [GELUFeedForwardConfig(4, form=form).build(1).activation(x) for form in ("erf", "tanh")]
    assert 1e-5 < (parts[0] - parts[1]).abs().max() < 1e-3
