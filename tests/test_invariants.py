"""What holds of every part in the catalog, in a decoder and in an encoder-decoder.

Shapes are checked for rows padded and packed, for an encoder, and step by step in single precision; the other tests
call the same once more. What has nothing to do with attention is tried with one kernel.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import properties
from tests.catalog import EVERY, ROWS, VOCAB, each, each_with_kernels, make
from tests.properties import ARRANGEMENTS, LENGTH, leaf_embeddings, reached, tokens
from transformer.base.sockets import Execution, Kernel
from transformer.base.transformer import EncoderDecoderConfig
from transformer.enhancements import CATALOG, naive_attention
from transformer.enhancements.architecture.mixture_of_depths import MixtureOfDepthsConfig
from transformer.enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from transformer.enhancements.attention.performer import PerformerConfig
from transformer.enhancements.compose import has_part
from transformer.models import KINDS, DecoderOnlyConfig, ModelConfig
from transformer.utils.codec import decode, encode
from transformer.utils.layering import dump_yaml, read_layers

each_mode = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
unchecked = pytest.mark.shapes_unchecked
each_arrangement = pytest.mark.parametrize("arrangement", ARRANGEMENTS)


def test_every_kind_is_covered() -> None:
    assert {row.kind for row in ROWS} == set(CATALOG)
    assert all(row.models for row in ROWS)
    assert {model for row in ROWS for model in row.models} == set(EVERY)


@unchecked
@each_with_kernels(DecoderOnlyConfig)
@each_mode
@each_arrangement
def test_a_decoder_is_causal(
    config: DecoderOnlyConfig, kernel: Kernel, train: bool, arrangement: str
) -> None:
    sparse = has_part(config, MixtureOfDepthsConfig)  # some tokens pass a block by
    properties.check_causality(config, kernel, train, ARRANGEMENTS[arrangement], sparse)


@each_with_kernels(EncoderDecoderConfig)
@each_mode
def test_an_encoder_sees_all_and_its_decoder_only_the_past(
    config: EncoderDecoderConfig, kernel: Kernel, train: bool
) -> None:
    model = make(config, Execution(kernel)).train(train)
    source, target = tokens(1, LENGTH).expand(LENGTH, -1), tokens(1, LENGTH, seed=4).expand(LENGTH, -1)
    real = torch.arange(LENGTH) != 5
    with leaf_embeddings(model) as leaves:
        logits = model(source, target, real.expand(LENGTH, -1))
        hidden = model.encode(source, real.expand(LENGTH, -1)).hidden
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    assert torch.equal(reached(logits, leaves[0]), everything & real)
    assert torch.equal(reached(logits, leaves[1]), everything.tril())
    assert torch.equal(reached(hidden, leaves[2])[real], (everything & real)[real])


# Mixture of depths chooses by later tokens while training, and multiplies as many rows as it chooses at any time.
@unchecked
@each_with_kernels(but=MixtureOfDepthsConfig)
@each_mode
def test_no_continuation_changes_what_came_before(config: ModelConfig, kernel: Kernel, train: bool) -> None:
    exact = not has_part(config, MixtureOfExpertsConfig)  # products of other numbers of rows round otherwise
    properties.check_prefixes(config, kernel, train, exact)


@unchecked
@each_with_kernels()
def test_step_by_step_is_the_whole_sequence(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_stepwise(config, kernel)


@each()
def test_step_by_step_is_the_whole_sequence_in_single_precision(config: ModelConfig) -> None:
    properties.check_stepwise(config, naive_attention, torch.float32, properties.CHUNKS[:2])


@unchecked
@each_with_kernels(DecoderOnlyConfig)
def test_ragged_prompts_continue_as_each_would_alone(config: DecoderOnlyConfig, kernel: Kernel) -> None:
    properties.check_ragged_prompts(config, kernel)


@unchecked
@each_with_kernels()
def test_beams_may_be_repeated_dropped_and_reordered(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_reordering(config, kernel)


@each_with_kernels()
def test_padding_changes_nothing(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_padding(config, kernel)


@unchecked
@each_with_kernels()
def test_a_row_of_padding_is_finite_and_harmless(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_blank_row(config, kernel)


@unchecked
@each_with_kernels()
def test_rows_of_a_batch_are_independent(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_batches(config, kernel)


@each_with_kernels(DecoderOnlyConfig)
def test_packed_documents_are_as_alone(config: DecoderOnlyConfig, kernel: Kernel) -> None:
    properties.check_packing(config, kernel)


@unchecked
@each_with_kernels()
def test_checkpointing_changes_no_bit(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_checkpointing(config, kernel)


@unchecked
@each()
def test_gradients_agree_with_finite_differences(config: ModelConfig) -> None:
    # Performer's largest features are constants to autograd; its epsilon is a part of them
    tolerance = 1e-4 if has_part(config, PerformerConfig) else 1e-6
    properties.check_gradients(config, tolerance=tolerance)


@unchecked
@each()
def test_a_config_is_plain_data_and_yaml(config: ModelConfig, tmp_path: Path) -> None:
    data = encode(config)
    assert decode(type(config), data, kinds=KINDS) == config
    (tmp_path / "model.yaml").write_text(dump_yaml(data), encoding="utf-8")
    layers = read_layers([tmp_path / "model.yaml"])
    assert decode(type(config), layers.data, kinds=KINDS, origin=layers.origin) == config


@unchecked
@each()
def test_weights_are_all_of_a_model(config: ModelConfig) -> None:
    model, other = make(config), make(config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(properties.run(model, tokens(2, 6)), properties.run(other, tokens(2, 6)))
    other.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert torch.equal(properties.run(model, tokens(2, 6)), properties.run(other, tokens(2, 6)))
    assert other.lm_head.weight.shape == (VOCAB, config.d_model)
    assert other.lm_head.weight.data_ptr() == other.embedding.weight.data_ptr()
