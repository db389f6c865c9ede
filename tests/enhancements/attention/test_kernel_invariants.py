"""The properties of every model, under the kernels that work tile by tile, in tiles small enough to be several."""

from __future__ import annotations

from functools import partial

import pytest

from tests import properties
from tests.catalog import decoder_block, decoder_only, encoder_decoder
from tests.properties import ARRANGEMENTS
from transformer.base.attention import CrossAttentionConfig
from transformer.base.sockets import Kernel
from transformer.enhancements import chunked_attention, flash_attention, rope
from transformer.enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from transformer.enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from transformer.models import DecoderOnlyConfig, ModelConfig

pytestmark = pytest.mark.shapes_unchecked

GENERAL = GroupedQueryAttentionConfig(6, 2, d_head=4, dropout=0.2, soft_cap=1.5, sinks=True)
LOCAL = SlidingWindowAttentionConfig(6, 3, dropout=0.2, window=4)
DECODERS = {
    "general": decoder_only(decoder_block(mixer=GENERAL)),
    "local": rope()(decoder_only(decoder_block(mixer=LOCAL))),
}
CONFIGS: dict[str, ModelConfig] = {
    **DECODERS,
    "pair": encoder_decoder(decoder_block(), decoder_block(cross_attention=CrossAttentionConfig(3))),
}
KERNELS = {
    "flash": partial(flash_attention, rows=3, columns=2),
    "chunked": partial(chunked_attention, rows=3, columns=2),
}
each = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
each_decoder = pytest.mark.parametrize("config", DECODERS.values(), ids=list(DECODERS))
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))


@each_decoder
@each_kernel
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_decoder_is_causal(
    config: DecoderOnlyConfig, kernel: Kernel, train: bool, arrangement: str
) -> None:
    sparse = train or config is DECODERS["local"]  # dropout and a window hide some of what may be seen
    properties.check_causality(config, kernel, train, ARRANGEMENTS[arrangement], sparse)


@each
@each_kernel
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_no_continuation_changes_what_came_before(config: ModelConfig, kernel: Kernel, train: bool) -> None:
    properties.check_prefixes(config, kernel, train)


@each
@each_kernel
def test_step_by_step_is_the_whole_sequence(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_stepwise(config, kernel)


@each_decoder
@each_kernel
def test_ragged_prompts_continue_as_each_would_alone(config: DecoderOnlyConfig, kernel: Kernel) -> None:
    properties.check_ragged_prompts(config, kernel)


@each
@each_kernel
def test_padding_batches_and_blank_rows(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_padding(config, kernel)
    properties.check_blank_row(config, kernel)
    properties.check_batches(config, kernel)


@each_decoder
@each_kernel
def test_packed_documents_are_as_alone(config: DecoderOnlyConfig, kernel: Kernel) -> None:
    properties.check_packing(config, kernel)


@each
@each_kernel
def test_checkpointing_changes_no_bit(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_checkpointing(config, kernel)


@each
@each_kernel
def test_gradients_agree_with_finite_differences(config: ModelConfig, kernel: Kernel) -> None:
    properties.check_gradients(config, kernel)
