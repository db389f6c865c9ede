"""The enhancements that move the norms: what they make of whole configs, first weights, and what depth does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.catalog import decoder_only, make
from tests.properties import tokens
from transformer.base.attention import MultiHeadAttention
from transformer.base.normalization import LayerNormConfig, NoNormConfig
from transformer.base.sockets import Enhancement, NormConfig, OutputProjection, WiringConfig
from transformer.base.transformer import XavierConfig, transformer
from transformer.base.wiring import PostNormConfig, PreNormConfig
from transformer.enhancements import (
    CATALOG,
    deep_norm,
    enhance,
    grouped_query,
    layer_scale,
    post_norm,
    post_sublayer_norm,
    pre_norm,
    resi_dual,
    rms_norm,
    sandwich_norm,
    scale_norm,
    stochastic_depth,
)
from transformer.enhancements.architecture.stochastic_depth import StochasticDepthConfig
from transformer.enhancements.attention.grouped_query import GroupedQueryAttention
from transformer.enhancements.initialization import GPT2Config
from transformer.enhancements.normalization.deep_norm import DeepNormConfig, DeepNormInitializationConfig
from transformer.enhancements.normalization.layer_scale import LayerScaleConfig
from transformer.enhancements.normalization.placement import PLACEMENTS
from transformer.enhancements.normalization.post_sublayer_norm import PostSublayerNormConfig
from transformer.enhancements.normalization.resi_dual import ResiDualConfig, ResiDualNormConfig
from transformer.enhancements.normalization.rms_norm import RMSNormConfig
from transformer.enhancements.normalization.sandwich_norm import SandwichNormConfig
from transformer.enhancements.normalization.scale_norm import ScaleNormConfig
from transformer.models import build, gpt

pytestmark = pytest.mark.shapes_unchecked

DROPOUT = 0.25
PLACES: dict[str, tuple[Enhancement, WiringConfig, NormConfig]] = {
    "post_norm": (post_norm(), PostNormConfig(DROPOUT), NoNormConfig()),
    "pre_norm": (pre_norm(), PreNormConfig(DROPOUT), LayerNormConfig()),
    "sandwich_norm": (sandwich_norm(), SandwichNormConfig(DROPOUT), LayerNormConfig()),
    "post_sublayer_norm": (post_sublayer_norm(), PostSublayerNormConfig(DROPOUT), LayerNormConfig()),
    "resi_dual": (resi_dual(), ResiDualConfig(DROPOUT), ResiDualNormConfig(LayerNormConfig())),
    "layer_scale": (layer_scale(), LayerScaleConfig(DROPOUT, 0.1), LayerNormConfig()),
    "deep_norm": (deep_norm(), DeepNormConfig(DROPOUT, 4**0.25, 16**-0.25), NoNormConfig()),
}


def models() -> list[Any]:
    return [
        transformer(50, 24, 2, 2, dropout=DROPOUT),
        gpt(50, 24, 2, 2, dropout=DROPOUT),
        gpt(50, 24, 2, 2, dropout=DROPOUT).stack,
    ]


def stacks(config: Any) -> list[Any]:
    if hasattr(config, "blocks"):
        return [config]
    return [config.stack] if hasattr(config, "stack") else [config.encoder, config.decoder]


# ---------------------------------------------------------------- configs


def test_every_placement_is_tested_here() -> None:
    """A wiring of the catalog decides where the norm stands, or wraps one that does."""
    wirings = {kind for kind, part in CATALOG.items() if issubclass(part, PLACEMENTS)}
    elsewhere = {"residual_multiplier"}  # a pre-norm of one family: it has tests of its own
    assert wirings - elsewhere <= {wiring.kind for _, wiring, _ in PLACES.values()}


@pytest.mark.parametrize("name", PLACES)
def test_every_sublayer_is_rewired_and_the_stack_ends_as_it_should(name: str) -> None:
    enhancement, wiring, final = PLACES[name]
    for config in models():
        changed = enhance(config, enhancement)
        for stack in stacks(changed):
            assert stack.norm == final
            for block in stack.blocks:
                scaled = isinstance(block.wiring, DeepNormConfig) and len(stacks(config)) == 2
                assert (
                    replace(block.wiring, alpha=4**0.25, beta=16**-0.25) if scaled else block.wiring == wiring
                )
                assert type(block.wiring) is type(wiring) and block.wiring.dropout == DROPOUT
                assert block.norm == LayerNormConfig()
        assert enhance(changed, enhancement) == changed
        assert enhance(config, enhancement, scale_norm()) == enhance(config, scale_norm(), enhancement)
        assert enhance(config, enhancement, rms_norm()) == enhance(config, rms_norm(), enhancement)


@pytest.mark.parametrize("first", PLACES)
@pytest.mark.parametrize("second", PLACES)
def test_the_last_placement_holds(first: str, second: str) -> None:
    for config in models():
        both = enhance(config, PLACES[first][0], PLACES[second][0])
        alone = enhance(config, PLACES[second][0])
        if first == "deep_norm" and hasattr(both, "initialization"):
            # DeepNorm's rule for first weights stays, and without its wiring does what the rule in it does
            rest = alone.initialization
            expected = rest if second == "deep_norm" else DeepNormInitializationConfig(rest)
            assert both.initialization == expected
            both = replace(both, initialization=rest)
        assert both == alone


def test_the_stack_ends_in_the_norm_of_its_blocks_in_any_form() -> None:
    config = enhance(transformer(50, 24, 2, 2), rms_norm(), sandwich_norm())
    assert [stack.norm for stack in stacks(config)] == [RMSNormConfig()] * 2
    config = enhance(config, resi_dual(), scale_norm())
    assert [stack.norm for stack in stacks(config)] == [ResiDualNormConfig(ScaleNormConfig())] * 2


@pytest.mark.parametrize("name", PLACES)
def test_stochastic_depth_goes_with_every_placement(name: str) -> None:
    enhancement, wiring, _ = PLACES[name]
    config = gpt(50, 24, 2, 2, dropout=DROPOUT)
    wrapped = enhance(config, enhancement, stochastic_depth(0.5))
    assert wrapped == enhance(config, stochastic_depth(0.5), enhancement)
    assert wrapped.stack.blocks[1].wiring == StochasticDepthConfig(wiring, 0.5)
    build(wrapped)(torch.zeros(1, 3, dtype=torch.long))


def test_layer_scale_begins_as_the_depth_says() -> None:
    for depth, initial in ((1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (48, 1e-6)):
        config = enhance(gpt(50, 24, 2, depth), layer_scale())
        assert {block.wiring for block in config.stack.blocks} == {LayerScaleConfig(0.1, initial)}
    config = enhance(gpt(50, 24, 2, 24), layer_scale(1e-4))
    gains = [
        p for name, p in build(config).named_parameters() if name.endswith(("mixer.weight", "forward.weight"))
    ]
    assert len(gains) == 48 and all(torch.equal(gain, torch.full((24,), 1e-4)) for gain in gains)


# ---------------------------------------------------------------- limits in which one placement is another


@torch.no_grad()
def test_where_placements_meet() -> None:
    """DeepNorm with α = 1 is post-norm; LayerScale with λ = 1 and a sandwich without its outer norm are pre-norm."""
    x = tokens(2, 9)
    post, pre = (make(enhance(decoder_only(), place)) for place in (post_norm(), pre_norm()))
    deep, scaled = (make(enhance(decoder_only(), place)) for place in (deep_norm(), layer_scale()))
    deep.load_state_dict(post.state_dict())
    assert not torch.equal(deep(x), post(x))
    for module in deep.modules():
        if hasattr(module, "alpha"):
            module.alpha = 1.0
    assert torch.equal(deep(x), post(x))
    scaled.load_state_dict(pre.state_dict(), strict=False)
    for name, gain in scaled.named_parameters():
        if name not in pre.state_dict():
            gain.fill_(1.0)
    assert torch.equal(scaled(x), pre(x))
    sandwich = make(enhance(decoder_only(), sandwich_norm()))
    sandwich.load_state_dict(pre.state_dict(), strict=False)
    assert not torch.allclose(sandwich(x), pre(x))
    for module in list(sandwich.modules()):
        if hasattr(module, "output_norm"):
            module.output_norm = nn.Identity()
    assert torch.equal(sandwich(x), pre(x))


@torch.no_grad()
def test_post_sublayer_norm_leaves_the_stream_alone_and_post_norm_does_not() -> None:
    """OLMo 2 normalizes what is added: with silent norms the stream is the embedding; post-norm's would be nothing."""
    x = tokens(2, 9)
    for place, same in ((post_sublayer_norm(), True), (post_norm(), False)):
        model = make(enhance(decoder_only(), place))
        seen: list[torch.Tensor] = []
        for block in model.stack.blocks:
            for name in ("mixer", "feed_forward"):
                for parameter in block.get_submodule(name).norm.parameters():
                    parameter.zero_()
        model.stack.blocks[0].register_forward_pre_hook(lambda module, args, s=seen: s.append(args[0]))
        model.stack.blocks[-1].register_forward_hook(lambda module, args, out, s=seen: s.append(out))
        model(x)
        assert torch.equal(*seen) == same and bool(seen[1].any()) == same


# ---------------------------------------------------------------- DeepNorm's numbers and first weights


@pytest.mark.parametrize(
    ("n", "m", "encoder", "decoder"),
    [
        (12, 6, (1.6862, 0.4179), (2.0598, 0.3433)),
        (6, 6, (1.4179, 0.4970), (2.0598, 0.3433)),
        (100, 100, (3.4157, 0.2063), (4.1618, 0.1699)),
    ],
)
def test_the_constants_of_an_encoder_decoder(
    n: int, m: int, encoder: tuple[float, float], decoder: tuple[float, float]
) -> None:
    """0.81 (N⁴M)^1/16, 0.87 (N⁴M)^−1/16 and (3M)^¼, (12M)^−¼, by a pocket calculator; 100L-100L is the paper's 200L."""
    config = transformer(50, 24, 2, n)
    config = replace(config, decoder=replace(config.decoder, blocks=config.decoder.blocks[:1] * m))
    config = enhance(config, deep_norm())
    for stack, (alpha, beta) in ((config.encoder, encoder), (config.decoder, decoder)):
        for block in stack.blocks:
            assert block.wiring.alpha == pytest.approx(alpha, abs=5e-5)
            assert block.wiring.beta == pytest.approx(beta, abs=5e-5)


@pytest.mark.parametrize(
    ("n", "alpha", "beta"), [(12, 2.2134, 0.3195), (100, 3.7606, 0.1880), (8, 2.0, 8**-0.5)]
)
def test_the_constants_of_one_stack(n: int, alpha: float, beta: float) -> None:
    for config in (gpt(50, 24, 2, n), gpt(50, 24, 2, n).stack):
        for stack in stacks(enhance(config, deep_norm())):
            assert stack.blocks[-1].wiring.alpha == pytest.approx(alpha, abs=5e-5)
            assert stack.blocks[-1].wiring.beta == pytest.approx(beta, abs=5e-5)


def gain_of(linear: nn.Linear) -> float:
    """How many times the standard deviation of Xavier's first weights these have."""
    return linear.weight.std().item() / (2 / (linear.in_features + linear.out_features)) ** 0.5


def test_deep_norm_scales_the_first_weights_of_values_outputs_and_feed_forward() -> None:
    torch.manual_seed(1)
    config = enhance(transformer(300, 96, 4, 6), deep_norm())
    model = build(config)
    for stack, beta in ((model.encoder, 0.4970), (model.decoder, 0.3433)):
        counted = 0
        for path, module in stack.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            counted += 1
            expected = 1.0 if path.endswith(("q_proj", "k_proj")) else beta
            assert gain_of(module) == pytest.approx(expected, rel=0.04), path
            normal = (module.weight.abs() > 2 * module.weight.std()).float().mean().item()
            assert 0.03 < normal < 0.06, (
                "normal, not uniform, whose entries stay within 1.73 standard deviations"
            )
            assert module.bias is None or not module.bias.any()
        assert counted == 6 * (6 if stack is model.encoder else 10)
    assert model.embedding.weight.std().item() == pytest.approx(96**-0.5, rel=0.02)


def test_deep_norms_first_weights_go_with_other_attention_and_another_rule() -> None:
    config = enhance(gpt(300, 96, 8, 6), grouped_query(2), deep_norm())
    assert config.initialization == DeepNormInitializationConfig(GPT2Config())
    model, beta = build(config), 48**-0.25
    for module in model.stack.modules():
        assert not isinstance(module, MultiHeadAttention)
        if isinstance(module, GroupedQueryAttention):
            for name, gain in (("q_proj", 1.0), ("k_proj", 1.0), ("v_proj", beta), ("out_proj", beta)):
                assert gain_of(module.get_submodule(name)) == pytest.approx(gain, rel=0.06), name
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    plain = build(replace(gpt(300, 96, 8, 6), initialization=DeepNormInitializationConfig(GPT2Config())))
    written = [m for m in plain.modules() if isinstance(m, OutputProjection)]
    assert all(abs(m.weight.std().item() * 12**0.5 / 0.02 - 1) < 0.04 for m in written)


# ---------------------------------------------------------------- depth


def first_update(place: Enhancement, n_layers: int, seed: int) -> float:
    """How far one small step of SGD on the blocks' matrices moves the hidden states, per token and learning rate."""
    config = replace(enhance(gpt(17, 16, 2, n_layers, dropout=0.0), place), initialization=XavierConfig())
    config = enhance(config, place)  # and then the first weights the placement wants
    torch.manual_seed(seed)
    model, rate, hidden = build(config).double(), 1e-3, []
    model.stack.register_forward_hook(lambda module, args, out: hidden.append(out.detach()))
    x, y = torch.randint(17, (2, 3, 12))
    F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
    with torch.no_grad():
        for module in model.stack.modules():
            if isinstance(module, nn.Linear):
                module.weight -= rate * module.weight.grad
    model(x)
    return (hidden[1] - hidden[0]).norm(dim=-1).mean().item() / rate


def test_deep_norm_bounds_the_first_update_at_any_depth_and_post_norm_does_not() -> None:
    """§4's claim, measured: at 48 layers as at 6. Post-norm's update grows with the depth, and is large."""
    deep = {n: [first_update(deep_norm(), n, seed) for seed in range(2)] for n in (6, 48)}
    post = {n: [first_update(post_norm(), n, seed) for seed in range(2)] for n in (6, 48)}
    assert 0.5 < sum(deep[48]) / sum(deep[6]) < 1.5
    assert sum(post[48]) > 4 * sum(post[6])
    assert min(post[48]) > 100 * max(deep[48])


@torch.no_grad()
def test_layer_scale_begins_near_the_identity_at_any_depth() -> None:
    """With λ = 1e-6 the blocks of a deep stack change the stream by less than a thousandth; pre-norm's blocks do."""
    for place, small in ((layer_scale(), True), (pre_norm(), False)):
        torch.manual_seed(0)
        model = build(enhance(gpt(17, 16, 2, 48, dropout=0.0), place))
        seen: list[torch.Tensor] = []
        model.stack.blocks[0].register_forward_pre_hook(lambda module, args, s=seen: s.append(args[0]))
        model.stack.blocks[-1].register_forward_hook(lambda module, args, out, s=seen: s.append(out))
        model(tokens(2, 9) % 17)
        assert ((seen[1] - seen[0]).norm() < 1e-3 * seen[0].norm()) == small


def test_the_second_stream_of_resi_dual_hears_every_branch_directly() -> None:
    """d_N = d_0 + Σ f_k(x_k): the gradient by each branch's output is that of LN(d_N), plus what comes through x."""
    model = make(enhance(decoder_only(), resi_dual()))
    made: list[torch.Tensor] = []
    for block in model.stack.blocks:
        for name in ("mixer", "feed_forward"):
            branch = block.get_submodule(name).branch
            branch.register_forward_hook(lambda module, args, out: made.append(out))
    streams: list[torch.Tensor] = []
    model.stack.norm.register_forward_pre_hook(lambda module, args: streams.append(args[0]))
    start: list[torch.Tensor] = []
    model.stack.blocks[0].register_forward_pre_hook(lambda module, args: start.append(args[0]))
    model(tokens(2, 9))
    width = model.config.d_model
    dual = streams[0][..., width:]
    torch.testing.assert_close(dual, start[0] + sum(made), rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad(dual.sum(), made[-1])
    assert torch.equal(gradient, torch.ones_like(gradient))
