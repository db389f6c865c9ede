"""Parts that do not exist yet, on the sockets that do: the same properties must hold of them as of the catalog's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import properties
from tests.catalog import VOCAB, WIDTH, decoder_block, decoder_only, each_kernel, encoder_decoder, make
from tests.properties import ARRANGEMENTS, close, tokens, value_and_gradients
from tests.spikes.parts import (
    BucketBiasConfig,
    LinearBiasConfig,
    LinearRecurrenceConfig,
    MixtureOfDepths,
    MixtureOfDepthsConfig,
    ParallelConfig,
    PlainFeedForwardConfig,
    SwitchConfig,
    SwitchFeedForward,
)
from transformer.base import AuxiliaryLosses, scaled_dot_product_attention
from transformer.base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from transformer.base.feed_forward import ReluFeedForwardConfig
from transformer.base.normalization import LayerNormConfig
from transformer.base.position import NoPositionConfig
from transformer.base.sockets import Execution, Kernel
from transformer.base.stack import StackConfig
from transformer.base.wiring import PreNormConfig
from transformer.enhancements.attention.sdpa import sdpa_attention
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.models import DecoderOnlyConfig, ModelConfig

ROPE, NOPE = RotaryPositionConfig(), NoPositionConfig()
BLOCK = decoder_block(wiring=PreNormConfig(0.2))


def stack_of(*blocks: object, position: object = ROPE) -> DecoderOnlyConfig:
    return DecoderOnlyConfig(VOCAB, WIDTH, StackConfig(blocks, position, LayerNormConfig(), 0.2))


def crossed(block: object) -> object:
    return replace(block, cross_attention=CrossAttentionConfig(3))


PARALLEL = ParallelConfig(MultiHeadAttentionConfig(3, dropout=0.2), ReluFeedForwardConfig(20))
SWITCH = decoder_block(feed_forward=SwitchConfig())
RECURRENT = decoder_block(mixer=LinearRecurrenceConfig())
SPIKES: dict[str, ModelConfig] = {
    "switch": decoder_only(SWITCH),
    "switch_pair": encoder_decoder(SWITCH, crossed(SWITCH)),
    "rope_among_nope": stack_of(BLOCK, replace(BLOCK, position=ROPE), BLOCK, position=NOPE),
    "nope_among_rope": stack_of(BLOCK, replace(BLOCK, position=NOPE)),
    "alibi": decoder_only(position=LinearBiasConfig()),
    "buckets": decoder_only(position=BucketBiasConfig()),
    "buckets_pair": encoder_decoder(BLOCK, crossed(BLOCK), position=BucketBiasConfig()),
    "own_buckets": stack_of(BLOCK, replace(BLOCK, position=BucketBiasConfig())),
    "recurrent": decoder_only(RECURRENT, position=NOPE),
    "hybrid": stack_of(RECURRENT, BLOCK, RECURRENT),
    "parallel": decoder_only(decoder_block(mixer=PARALLEL, feed_forward=None)),
    "no_state": stack_of(BLOCK, PlainFeedForwardConfig()),
}
DEPTHS: dict[str, ModelConfig] = {
    "depths": stack_of(BLOCK, MixtureOfDepthsConfig(BLOCK), BLOCK),
    "depths_with_own_position": stack_of(MixtureOfDepthsConfig(replace(BLOCK, position=BucketBiasConfig()))),
    "recurrent_depths": stack_of(MixtureOfDepthsConfig(RECURRENT), BLOCK),
    "depths_pair": encoder_decoder(BLOCK, MixtureOfDepthsConfig(crossed(BLOCK)), position=ROPE),
}
EVERY = SPIKES | DEPTHS
each = pytest.mark.parametrize("name", EVERY)
each_decoder = pytest.mark.parametrize(
    "name", [n for n, c in EVERY.items() if isinstance(c, DecoderOnlyConfig)]
)


@each_decoder
@each_kernel
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_causality(name: str, kernel: Kernel, arrangement: str) -> None:
    for train in (False, True):
        properties.check_causality(
            EVERY[name], kernel, train, ARRANGEMENTS[arrangement], sparse=name in DEPTHS
        )


# Experts and skipped blocks multiply as many rows as are routed to them, so bits of the rounding vary with the future.
@pytest.mark.parametrize("name", [name for name in SPIKES if "switch" not in name])
@each_kernel
def test_prefixes(name: str, kernel: Kernel) -> None:
    properties.check_prefixes(SPIKES[name], kernel, train=False)


@each
@each_kernel
def test_decoding(name: str, kernel: Kernel) -> None:
    properties.check_stepwise(EVERY[name], kernel)
    properties.check_reordering(EVERY[name], kernel)


@each_decoder
@each_kernel
def test_ragged_prompts_and_packing(name: str, kernel: Kernel) -> None:
    properties.check_ragged_prompts(EVERY[name], kernel)
    properties.check_packing(EVERY[name], kernel)


@each
@each_kernel
def test_padding_and_batches(name: str, kernel: Kernel) -> None:
    properties.check_padding(EVERY[name], kernel)
    properties.check_blank_row(EVERY[name], kernel)
    properties.check_batches(EVERY[name], kernel)


@each
@each_kernel
def test_checkpointing(name: str, kernel: Kernel) -> None:
    properties.check_checkpointing(EVERY[name], kernel)


@each
def test_gradients(name: str) -> None:
    properties.check_gradients(EVERY[name])


# ---------------------------------------------------------------- a loss made inside a block


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_balance_loss_is_counted_once_per_layer(checkpoint: bool) -> None:
    model = make(SPIKES["switch"], Execution(scaled_dot_product_attention, checkpoint)).train()
    seen: list[torch.Tensor] = []

    def by_hand(module: SwitchFeedForward, args: tuple, output: torch.Tensor) -> None:
        gates = module.router(args[0]).softmax(-1)
        share = torch.stack([(gates.argmax(-1) == i).double().mean() for i in range(3)])
        seen.append(0.3 * 3 * (share * gates.mean((0, 1))).sum().detach())

    for module in model.modules():
        if isinstance(module, SwitchFeedForward):
            module.register_forward_hook(by_hand)
    auxiliary = AuxiliaryLosses()
    logits = model(tokens(3, 8), auxiliary=auxiliary)
    expected, before = torch.stack(seen[:2]).sum(), auxiliary.total()
    close(before, expected)
    (logits.square().mean() + before).backward()
    assert len(seen) == (4 if checkpoint else 2)  # recomputed, yet not counted again
    close(auxiliary.total(), expected)
    assert set(auxiliary.named()) == {"balance"}


def test_a_balance_loss_trains_the_router_through_checkpointing() -> None:
    """The gradient of the balance loss alone: no path to it but through the collector."""
    gradients = []
    for checkpoint in (False, True):
        model = make(SPIKES["switch"], Execution(scaled_dot_product_attention, checkpoint)).train()
        torch.manual_seed(1)
        auxiliary = AuxiliaryLosses()
        model(tokens(3, 8), auxiliary=auxiliary)
        auxiliary.total().backward()
        routers = [m.router.weight.grad for m in model.modules() if isinstance(m, SwitchFeedForward)]
        assert all(gradient.abs().max() > 1e-6 for gradient in routers)
        gradients.append(torch.stack(routers))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_micro_batches_add_up(checkpoint: bool) -> None:
    """Gradients accumulated over micro-batches are the sum of each one's, its balance loss included."""
    model = make(SPIKES["switch"], Execution(scaled_dot_product_attention, checkpoint))
    parts = tokens(6, 8).split([2, 3, 1])
    alone = [value_and_gradients(model, part, len(part) / 6)[1] for part in parts]
    for part in parts:
        auxiliary = AuxiliaryLosses()
        logits = model(part[:, :-1], auxiliary=auxiliary)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
        ((loss + auxiliary.total()) * len(part) / 6).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, torch.stack([gradients[name] for gradients in alone]).sum(0))


# ---------------------------------------------------------------- a layer that runs on some of the tokens


def test_a_cache_holds_only_the_routed_tokens_at_their_own_positions() -> None:
    model = make(DEPTHS["depths"])
    x, state = tokens(1, 12), model.initial_state()
    layer = model.stack.blocks[1]
    assert isinstance(layer, MixtureOfDepths)
    routed: list[torch.Tensor] = []
    layer.router.register_forward_hook(lambda module, args, out: routed.append(out[0, :, 0] > 0))
    model.decode(x[:, :5], state)
    for t in range(5, 12):
        model.decode(x[:, t : t + 1], state)
    kept = torch.cat(routed).nonzero().flatten()
    assert 2 < len(kept) < 12
    cache = state.blocks[1].sublayers["mixer"]
    assert torch.equal(cache.layout.positions[0], kept)
    assert cache.keys.shape[2] == len(kept)
    assert state.blocks[0].sublayers["mixer"].keys.shape[2] == 12


def test_a_skipped_block_is_what_its_definition_says() -> None:
    """x + r·(f(x̃)) on the routed tokens, computed by removing the others from the sequence by hand."""
    model = make(stack_of(MixtureOfDepthsConfig(BLOCK)))
    layer = model.stack.blocks[0]
    seen: list[tuple] = []
    layer.register_forward_hook(lambda module, args, out: seen.append((args[0], args[1], out)))
    model(tokens(1, 12))
    x, context, out = seen[0]
    weight = layer.router(x)[0, :, 0]
    kept = (weight > 0).nonzero().flatten()
    assert 2 < len(kept) < 12
    expected = x.clone()
    branch = (
        layer.block(x[:, kept], replace(context, layout=replace(context.layout, positions=kept[None])))
        - x[:, kept]
    )
    expected[:, kept] += weight[kept, None] * branch
    close(out, expected)
    compacted = layer.block(
        x[:, kept], replace(context, layout=replace(context.layout, positions=kept[None] * 0))
    )
    assert not torch.allclose(compacted - x[:, kept], branch)  # positions matter here


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


@pytest.mark.parametrize("name", ["alibi", "buckets", "own_buckets"])
def test_a_bias_is_the_same_in_both_kernels(name: str) -> None:
    x = tokens(3, 20)
    results = [
        value_and_gradients(make(SPIKES[name], Execution(k)), x)
        for k in (scaled_dot_product_attention, sdpa_attention)
    ]
    (loss, gradients), (fused_loss, fused_gradients) = results
    close(fused_loss, loss)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(fused_gradients[parameter], gradient, rtol=0, atol=1e-10)
    if name != "alibi":
        assert any("table" in parameter and g.abs().max() > 0 for parameter, g in gradients.items())


@pytest.mark.parametrize("name", ["alibi", "buckets"])
@each_kernel
def test_a_bias_may_be_finer_than_the_model(name: str, kernel: Kernel) -> None:
    """A bias in float32 in a model of bfloat16, with a mask and (for an encoder) without."""
    for config in (
        SPIKES[name],
        encoder_decoder(BLOCK, crossed(BLOCK), position=SPIKES[name].stack.position),
    ):
        x = tokens(2, 9)
        coarse = properties.run(make(config, Execution(kernel), torch.bfloat16), x)
        assert coarse.dtype == torch.bfloat16
        exact = properties.run(make(config, Execution(kernel)), x)
        assert (coarse - exact).abs().mean() < 0.05 * exact.abs().mean()
