"""The norms against their definitions, and what each of them promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.base.test_references import array, compare, inputs, randomized, weights_of
from tests.catalog import WIDTH as SMALL_WIDTH
from tests.catalog import decoder_block, decoder_only, encoder_decoder
from tests.enhancements.normalization import definitions
from transformer.base.attention import CrossAttentionConfig
from transformer.base.normalization import LayerNorm, LayerNormConfig, NoNormConfig
from transformer.base.sockets import NormConfig
from transformer.base.wiring import PreNormConfig
from transformer.enhancements import (
    dynamic_tanh,
    enhance,
    group_norm,
    pre_norm,
    resi_dual,
    rms_norm,
    scale_norm,
    unit_offset_rms_norm,
)
from transformer.enhancements.attention.qk_norm import qk_norm
from transformer.enhancements.normalization.dynamic_tanh import DynamicTanh, DynamicTanhConfig
from transformer.enhancements.normalization.group_norm import GroupNorm, GroupNormConfig
from transformer.enhancements.normalization.non_parametric_layer_norm import (
    NonParametricLayerNorm,
    NonParametricLayerNormConfig,
)
from transformer.enhancements.normalization.non_parametric_rms_norm import (
    NonParametricRMSNorm,
    NonParametricRMSNormConfig,
)
from transformer.enhancements.normalization.resi_dual import ResiDualNormConfig
from transformer.enhancements.normalization.rms_norm import RMSNorm, RMSNormConfig
from transformer.enhancements.normalization.scale_norm import ScaleNorm, ScaleNormConfig
from transformer.enhancements.normalization.unit_offset_rms_norm import (
    UnitOffsetRMSNorm,
    UnitOffsetRMSNormConfig,
)

WIDTH = 48
each_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
each_norm = pytest.mark.parametrize(
    "norm",
    [
        NonParametricLayerNormConfig(),
        NonParametricRMSNormConfig(),
        UnitOffsetRMSNormConfig(),
        ScaleNormConfig(),
        GroupNormConfig(6),
        DynamicTanhConfig(),
    ],
    ids=lambda norm: norm.kind,
)


@each_precision
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_non_parametric_layer_norm(epsilon: float, dtype: torch.dtype, tolerance: float) -> None:
    module, x = NonParametricLayerNorm(WIDTH, epsilon), inputs(64, dtype)
    assert not list(module.parameters())
    expected = definitions.non_parametric_layer_norm(array(x), epsilon)
    compare(module(x), {"x": x}, module, expected, tolerance)


@each_precision
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_non_parametric_rms_norm(epsilon: float, dtype: torch.dtype, tolerance: float) -> None:
    module, x = NonParametricRMSNorm(epsilon), inputs(64, dtype)
    assert not list(module.parameters())
    expected = definitions.non_parametric_rms_norm(array(x), epsilon)
    compare(module(x), {"x": x}, module, expected, tolerance)


@each_precision
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])  # a large ε tells inside the root from outside
def test_unit_offset_rms_norm(epsilon: float, dtype: torch.dtype, tolerance: float) -> None:
    module, x = randomized(UnitOffsetRMSNorm(WIDTH, epsilon), dtype), inputs(64, dtype)
    expected = definitions.unit_offset_rms_norm(array(x), weights_of(module)["weight"], epsilon)
    compare(module(x), {"x": x}, module, expected, tolerance)


@each_precision
@pytest.mark.parametrize("epsilon", [1e-5, 7.0])  # 7 is longer than some of the vectors
def test_scale_norm(epsilon: float, dtype: torch.dtype, tolerance: float) -> None:
    module, x = randomized(ScaleNorm(WIDTH, epsilon), dtype), inputs(64, dtype)
    lengths = x.detach().norm(dim=-1)
    assert epsilon < 1 or ((lengths < epsilon).any() and (lengths > epsilon).any())
    expected = definitions.scale_norm(array(x), weights_of(module)["weight"], epsilon)
    compare(module(x), {"x": x}, module, expected, tolerance)


@each_precision
@pytest.mark.parametrize("n_groups", [1, 6, 24])
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_group_norm(n_groups: int, epsilon: float, dtype: torch.dtype, tolerance: float) -> None:
    module, x = randomized(GroupNorm(WIDTH, n_groups, epsilon), dtype), inputs(64, dtype)
    w = weights_of(module)
    expected = definitions.group_norm(array(x), w["weight"], w["bias"], n_groups, epsilon)
    compare(module(x), {"x": x}, module, expected, tolerance)


@each_precision
def test_dynamic_tanh(dtype: torch.dtype, tolerance: float) -> None:
    module, x = randomized(DynamicTanh(WIDTH), dtype), inputs(64, dtype)
    w = weights_of(module)
    expected = definitions.dynamic_tanh(array(x), w["alpha"], w["weight"], w["bias"])
    compare(module(x), {"x": x}, module, expected, tolerance)


def test_the_definitions_agree_with_finite_differences() -> None:
    rng = np.random.default_rng(0)
    x, gain, shift = rng.normal(size=(2, 5, 12)), rng.normal(size=12), rng.normal(size=12)
    functions: list[Any] = [
        lambda x: definitions.unit_offset_rms_norm(x, gain, 0.1),
        lambda x: definitions.non_parametric_rms_norm(x, 0.1),
        lambda x: definitions.scale_norm(x, gain, 3.5),
        lambda x: definitions.group_norm(x, gain, shift, 3, 0.1),
        lambda x: definitions.dynamic_tanh(x, gain, gain, shift),
    ]
    for function in functions:
        value, backward = function(x)
        for _ in range(3):
            slope, direction, h = rng.normal(size=value.shape), rng.normal(size=x.shape), 1e-5
            ahead, behind = function(x + h * direction)[0], function(x - h * direction)[0]
            difference = ((ahead - behind) * slope).sum() / (2 * h)
            assert abs((backward(slope)["x"] * direction).sum() - difference) <= 1e-7 * max(
                1, abs(difference)
            )


# ---------------------------------------------------------------- first weights, and what PyTorch has


@torch.no_grad()
def test_at_first_each_norm_is_what_it_says() -> None:
    x = torch.randn(2, 64, WIDTH, dtype=torch.float64) * 3 + 1
    unit, scale = UnitOffsetRMSNorm(WIDTH).double(), ScaleNorm(WIDTH).double()
    assert not unit.weight.any()
    torch.testing.assert_close(unit(x), RMSNorm(WIDTH).double()(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(unit(x), nn.RMSNorm(WIDTH, eps=1e-6).double()(x), rtol=0, atol=1e-14)
    assert scale.weight.shape == (1,) and abs(scale.weight.item() - math.sqrt(WIDTH)) < 1e-6
    # the length √d is the root mean square 1: with g = √d, ScaleNorm and RMSNorm agree but for ε
    torch.testing.assert_close(scale(x), RMSNorm(WIDTH, 1e-30).double()(x), rtol=1e-6, atol=0)
    torch.testing.assert_close(scale(x).norm(dim=-1), torch.full((2, 64), math.sqrt(WIDTH)).double())
    torch.testing.assert_close(DynamicTanh(WIDTH).double()(x), torch.tanh(x / 2), rtol=0, atol=1e-14)
    torch.testing.assert_close(DynamicTanh(WIDTH, 2.0).double()(x), torch.tanh(2 * x), rtol=0, atol=1e-14)


@torch.no_grad()
def test_group_norm_is_pytorchs_on_each_token_and_layer_norm_with_one_group() -> None:
    x = torch.randn(2, 64, WIDTH, dtype=torch.float64)
    ours, theirs = randomized(GroupNorm(WIDTH, 6), torch.float64), nn.GroupNorm(6, WIDTH).double()
    theirs.load_state_dict(ours.state_dict())
    by_token = theirs(x.flatten(0, 1)).unflatten(0, (2, 64))
    torch.testing.assert_close(ours(x), by_token, rtol=0, atol=1e-13)
    one = randomized(GroupNorm(WIDTH, 1), torch.float64)
    layer = LayerNorm(WIDTH).double()
    layer.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(x), layer(x), rtol=0, atol=1e-13)


# ---------------------------------------------------------------- traps


@each_norm
def test_no_norm_sees_another_token(norm: NormConfig) -> None:
    module = norm.build(WIDTH).double()
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[1, 4].square().sum() + module(x)[1, 4].sum(), x)
    seen = gradient.abs().sum(-1) != 0
    assert seen[1, 4] and seen.sum() == 1


@torch.no_grad()
def test_pytorchs_group_norm_over_time_leaks_the_future_and_ours_does_not() -> None:
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    other = x.clone()
    other[:, -1] += 1.0 + torch.arange(WIDTH)
    over_time, ours = nn.GroupNorm(6, WIDTH).double(), GroupNorm(WIDTH, 6).double()

    def first(y: torch.Tensor) -> torch.Tensor:
        return over_time(y.transpose(1, 2)).transpose(1, 2)[:, 0]

    assert (first(x) - first(other)).abs().max() > 0.1
    assert torch.equal(ours(x)[:, :-1], ours(other)[:, :-1])
    assert not torch.equal(ours(x)[:, -1], ours(other)[:, -1])


def test_dynamic_tanh_is_elementwise_and_the_norms_are_not() -> None:
    x = torch.randn(1, 1, WIDTH, dtype=torch.float64)
    for norm, alone in ((DynamicTanhConfig(), 1), (GroupNormConfig(6), 8), (ScaleNormConfig(), WIDTH)):
        module = norm.build(WIDTH).double()
        slopes = torch.autograd.functional.jacobian(module, x).reshape(WIDTH, WIDTH)
        assert torch.equal((slopes != 0).sum(1), torch.full((WIDTH,), alone))


@each_norm
def test_only_dynamic_tanh_sees_the_scale_of_a_token(norm: NormConfig) -> None:
    x = torch.randn(2, 64, WIDTH, dtype=torch.float64)
    module = randomized(norm.build(WIDTH), torch.float64)
    change = (module(100 * x) - module(1000 * x)).abs().max()
    assert change > 0.1 if isinstance(module, DynamicTanh) else change < 1e-4


@each_norm
def test_norms_keep_their_precision_where_the_input_is_coarse(norm: NormConfig) -> None:
    """In bfloat16 and for inputs of any size, the result is the exact one rounded: no square is lost on the way."""
    for scale in (2.0**-10, 1.0, 2.0**10):
        x = (torch.randn(2, 64, WIDTH) * scale).bfloat16()
        epsilon = {} if isinstance(norm, DynamicTanhConfig) else {"epsilon": 1e-12}
        module = type(norm)(**epsilon).build(WIDTH)
        exact = module.double()(x.double())
        assert (module.bfloat16()(x) - exact).abs().max() <= 2.0**-8 * exact.abs().max()


@torch.no_grad()
@each_norm
def test_everything_is_computed_in_float32_and_rounded_once(norm: NormConfig) -> None:
    coarse = randomized(norm.build(WIDTH), torch.bfloat16)
    exact = norm.build(WIDTH).double()
    exact.load_state_dict(coarse.state_dict())
    x = torch.randn(4, 64, WIDTH).bfloat16()
    assert (
        coarse(x) != exact(x.double()).bfloat16()
    ).double().mean() < 0.01  # but for ties that float32 decides


@torch.no_grad()
def test_a_gain_near_one_is_not_rounded_to_one() -> None:
    """In bfloat16, 1 + 2⁻⁹ is 1: the sum has to be taken in float32 too."""
    module = UnitOffsetRMSNorm(WIDTH).bfloat16()
    module.weight.fill_(2.0**-9)
    x = torch.randn(4, 64, WIDTH).bfloat16()
    wide = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
    expected = (wide * (1 + 2.0**-9)).bfloat16()
    cast_early = wide.bfloat16() * (1 + module.weight)
    assert (module(x) != expected).double().mean() < 0.01
    assert (cast_early != expected).double().mean() > 0.1


@torch.no_grad()
@each_norm
def test_a_token_of_zeros_is_finite(norm: NormConfig) -> None:
    module = norm.build(WIDTH)
    with torch.enable_grad():
        x = torch.zeros(1, 2, WIDTH, requires_grad=True)
        y = module(x)
        y.sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert not y.any()


# ---------------------------------------------------------------- the enhancements

REPLACING = {
    "unit_offset_rms_norm": (unit_offset_rms_norm(), UnitOffsetRMSNormConfig()),
    "scale_norm": (scale_norm(), ScaleNormConfig()),
    "group_norm": (group_norm(3), GroupNormConfig(3)),
    "dynamic_tanh": (dynamic_tanh(0.8), DynamicTanhConfig(0.8)),
}


@pytest.mark.parametrize("name", REPLACING)
@pytest.mark.parametrize("before", [LayerNormConfig(1e-4), RMSNormConfig(), GroupNormConfig(2)])
def test_every_norm_of_the_stream_is_replaced(name: str, before: NormConfig) -> None:
    enhancement, norm = REPLACING[name]
    block = decoder_block(wiring=PreNormConfig(), norm=before)
    crossed = decoder_block(norm=before, cross_attention=CrossAttentionConfig(3))
    for config in (decoder_only(block), encoder_decoder(block, crossed)):
        changed = enhance(config, pre_norm(), enhancement)
        assert changed == enhance(config, enhancement, pre_norm())
        stacks = [changed.stack] if hasattr(changed, "stack") else [changed.encoder, changed.decoder]
        for stack in stacks:
            assert stack.norm == norm and all(part.norm == norm for part in stack.blocks)
        assert enhance(changed, enhancement) == changed
        plain = enhance(config, enhancement)
        assert (plain.stack if hasattr(plain, "stack") else plain.decoder).norm == NoNormConfig()


def test_norms_within_parts_keep_their_form() -> None:
    config = enhance(decoder_only(), qk_norm(), resi_dual(), scale_norm())
    assert config.stack.norm == ResiDualNormConfig(ScaleNormConfig())
    assert config.stack.blocks[0].mixer.qk_norm == RMSNormConfig()
    assert config == enhance(decoder_only(), scale_norm(), resi_dual(), qk_norm())
    only_layer_norms = enhance(decoder_only(decoder_block(norm=ScaleNormConfig())), rms_norm())
    assert only_layer_norms.stack.blocks[0].norm == ScaleNormConfig()


@pytest.mark.parametrize(
    ("d_model", "n_groups", "hint"),
    [
        (48, 7, "the nearest n_groups that fits is 6"),
        (48, 48, "the nearest n_groups that fits is 24"),
        (1, 1, "one channel has nothing to be normalized by, so use another norm"),
    ],
)
def test_groups_that_do_not_fit_are_refused(d_model: int, n_groups: int, hint: str) -> None:
    message = (
        f"d_model {d_model} cannot be split into n_groups {n_groups} equal groups of two or more channels; "
    )
    with pytest.raises(ValueError, match=f"^{message}{hint}$"):
        GroupNormConfig(n_groups).build(d_model)
    assert GroupNormConfig(3).build(SMALL_WIDTH).n_groups == 3
