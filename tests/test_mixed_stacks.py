"""Stacks whose layers are unlike: other positions, other mixers, experts, and blocks for some of the tokens.

What holds of every part must hold of parts side by side, each with its own kind of state.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import properties
from tests.catalog import (
    VOCAB,
    WIDTH,
    decoder_block,
    decoder_only,
    each_kernel,
    encoder_decoder,
    make,
)
from tests.properties import ARRANGEMENTS, close, tokens, value_and_gradients
from transformer.base import scaled_dot_product_attention
from transformer.base.attention import CrossAttentionConfig
from transformer.base.normalization import LayerNormConfig
from transformer.base.position import NoPositionConfig
from transformer.base.sockets import Execution, Kernel, LayerConfig, PositionConfig
from transformer.base.stack import BlockConfig, StackConfig
from transformer.base.wiring import PreNormConfig
from transformer.enhancements import enhance, mixture_of_experts, naive_attention
from transformer.enhancements.architecture.mixture_of_depths import MixtureOfDepthsConfig
from transformer.enhancements.attention.gated_delta_net import GatedDeltaNetConfig
from transformer.enhancements.attention.sdpa import sdpa_attention
from transformer.enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from transformer.enhancements.compose import has_part
from transformer.enhancements.position.alibi import ALiBiConfig
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.enhancements.position.t5_bias import T5BiasConfig
from transformer.enhancements.ssm.mamba import MambaConfig
from transformer.models import DecoderOnlyConfig, ModelConfig

pytestmark = pytest.mark.shapes_unchecked

ROPE, NOPE, BUCKETS = RotaryPositionConfig(), NoPositionConfig(), T5BiasConfig(3, n_buckets=8, max_distance=9)
BLOCK = decoder_block(wiring=PreNormConfig(0.2))
MAMBA = replace(BLOCK, mixer=MambaConfig(d_state=3), feed_forward=None)
EXPERTS = enhance(replace(BLOCK, mixer=SlidingWindowAttentionConfig(3, 1, window=4)), mixture_of_experts(3))


def crossed(block: BlockConfig) -> BlockConfig:
    return replace(block, cross_attention=CrossAttentionConfig(3))


def stack_of(*blocks: LayerConfig, position: PositionConfig = ROPE) -> DecoderOnlyConfig:
    return DecoderOnlyConfig(VOCAB, WIDTH, StackConfig(blocks, position, LayerNormConfig(), 0.2))


STACKS: dict[str, ModelConfig] = {
    "rope_among_nope": stack_of(BLOCK, replace(BLOCK, position=ROPE), BLOCK, position=NOPE),
    "nope_among_rope": stack_of(BLOCK, replace(BLOCK, position=NOPE)),
    "own_buckets": stack_of(BLOCK, replace(BLOCK, position=BUCKETS)),
    "delta_and_attention": stack_of(replace(BLOCK, mixer=GatedDeltaNetConfig(3)), BLOCK),
    "depths_with_own_position": stack_of(MixtureOfDepthsConfig(replace(BLOCK, position=BUCKETS), 0.5)),
    "depths_of_a_recurrence": stack_of(MixtureOfDepthsConfig(MAMBA, 0.5), BLOCK),
    "hybrid": stack_of(
        MAMBA, MixtureOfDepthsConfig(BLOCK, 0.5), EXPERTS, MixtureOfDepthsConfig(EXPERTS, 0.5)
    ),
    "hybrid_pair": encoder_decoder(BLOCK, MixtureOfDepthsConfig(crossed(EXPERTS), 0.5), position=ROPE),
}
each = pytest.mark.parametrize("name", STACKS)
each_decoder = pytest.mark.parametrize(
    "name", [n for n, c in STACKS.items() if isinstance(c, DecoderOnlyConfig)]
)


@each_decoder
@each_kernel
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_causality(name: str, kernel: Kernel, arrangement: str) -> None:
    sparse = has_part(STACKS[name], MixtureOfDepthsConfig)
    for train in (False, True):
        properties.check_causality(STACKS[name], kernel, train, ARRANGEMENTS[arrangement], sparse)


@each
@each_kernel
def test_decoding(name: str, kernel: Kernel) -> None:
    properties.check_stepwise(STACKS[name], kernel)
    properties.check_reordering(STACKS[name], kernel)


@each_decoder
@each_kernel
def test_ragged_prompts_and_packing(name: str, kernel: Kernel) -> None:
    properties.check_ragged_prompts(STACKS[name], kernel)
    properties.check_packing(STACKS[name], kernel)


@each
@each_kernel
def test_padding_and_batches(name: str, kernel: Kernel) -> None:
    properties.check_padding(STACKS[name], kernel)
    properties.check_blank_row(STACKS[name], kernel)
    properties.check_batches(STACKS[name], kernel)


@each
def test_checkpointing_and_gradients(name: str) -> None:
    properties.check_checkpointing(STACKS[name])
    properties.check_gradients(STACKS[name])


# ---------------------------------------------------------------- positions


def test_a_position_of_every_block_is_that_of_the_stack() -> None:
    on_stack = make(stack_of(BLOCK, BLOCK, position=ROPE))
    own = replace(BLOCK, position=ROPE)
    on_blocks, mixed = make(stack_of(own, own, position=NOPE)), make(stack_of(own, BLOCK, position=NOPE))
    for other in (on_blocks, mixed):
        other.load_state_dict(on_stack.state_dict())
    x = tokens(2, 9)
    assert torch.equal(on_blocks(x), on_stack(x))
    assert not torch.allclose(mixed(x), on_stack(x))


@pytest.mark.parametrize("position", [ALiBiConfig(3), BUCKETS], ids=lambda config: config.kind)
def test_a_bias_is_the_same_in_both_kernels(position: PositionConfig) -> None:
    config = decoder_only(position=position)
    results = [
        value_and_gradients(make(config, Execution(kernel)), tokens(3, 20))
        for kernel in (scaled_dot_product_attention, sdpa_attention)
    ]
    (loss, gradients), (fused_loss, fused_gradients) = results
    close(fused_loss, loss)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(fused_gradients[parameter], gradient, rtol=0, atol=1e-10)
    learned = [g for parameter, g in gradients.items() if parameter.startswith("stack.position")]
    assert all(gradient.abs().max() > 0 for gradient in learned)
    assert len(learned) == (position is BUCKETS)


@pytest.mark.parametrize("position", [ALiBiConfig(3), BUCKETS], ids=lambda config: config.kind)
@each_kernel
def test_a_bias_may_be_finer_than_the_model(position: PositionConfig, kernel: Kernel) -> None:
    """A bias in float32 in a model of bfloat16, with a mask and (for an encoder) without."""
    encoders = replace(position, direction="bidirectional") if position is BUCKETS else position
    pair = encoder_decoder(BLOCK, crossed(BLOCK), position=encoders)
    for config in (decoder_only(position=position), pair):
        x = tokens(2, 9)
        coarse = properties.run(make(config, Execution(kernel), torch.bfloat16), x)
        assert coarse.dtype == torch.bfloat16
        exact = properties.run(make(config, Execution(kernel)), x)
        assert (coarse - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_every_kind_of_layer_keeps_what_it_is() -> None:
    """In one stack: a recurrence's state, a cache of chosen tokens, a window's; each at its block."""
    model = make(STACKS["hybrid"], Execution(naive_attention))
    state = model.initial_state()
    model.decode(tokens(1, 12), state)
    kept = [block.sublayers["mixer"] for block in state.blocks]
    assert not hasattr(kept[0], "keys")
    lengths = [cache.layout.positions.shape[1] for cache in kept[1:]]
    assert 0 < lengths[0] < 12 and lengths[2] < 12
