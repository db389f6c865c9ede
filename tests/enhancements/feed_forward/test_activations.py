"""Activations of the plain feed-forward network against definitions in NumPy, and what the enhancements change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import references
from tests.base.test_references import WIDTH, array, compare, each_precision, inputs, randomized, weights_of
from tests.catalog import decoder_block
from tests.references import Array
from transformer.base import FeedForward, scaled_dot_product_attention
from transformer.base.feed_forward import PlainFeedForwardConfig, ReluFeedForwardConfig
from transformer.base.sockets import Context, Enhancement, Execution, Layout, Mask
from transformer.base.transformer import transformer
from transformer.enhancements import (
    SWITCHES,
    apply_switches,
    enhance,
    gelu,
    mish,
    relu_squared,
    silu,
)
from transformer.enhancements.feed_forward.gelu import GELUFeedForwardConfig, quick_gelu
from transformer.enhancements.feed_forward.mish import MishFeedForwardConfig
from transformer.enhancements.feed_forward.relu_squared import ReLUSquaredFeedForwardConfig
from transformer.enhancements.feed_forward.silu import SiLUFeedForwardConfig
from transformer.models import gpt


def logistic(z: Array) -> Array:
    """1 / (1 + e^−z), with no exponential of a positive number."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + small), small / (1 + small))


def numpy_silu(z: Array, factor: float = 1.0) -> tuple[Array, Array]:
    s = logistic(factor * z)
    return z * s, s + factor * z * s * (1 - s)


def numpy_quick(z: Array) -> tuple[Array, Array]:
    return numpy_silu(z, 1.702)


def numpy_relu_squared(z: Array) -> tuple[Array, Array]:
    positive = np.where(z > 0, z, 0.0)
    return positive**2, 2 * positive


def numpy_mish(z: Array) -> tuple[Array, Array]:
    softplus = np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
    t = np.tanh(softplus)
    return z * t, t + z * (1 - t * t) * logistic(z)


CASES: dict[str, tuple[type[PlainFeedForwardConfig], dict[str, Any], Any]] = {
    "relu_squared": (ReLUSquaredFeedForwardConfig, {}, numpy_relu_squared),
    "silu": (SiLUFeedForwardConfig, {}, numpy_silu),
    "mish": (MishFeedForwardConfig, {}, numpy_mish),
    "quick": (GELUFeedForwardConfig, {"form": "quick"}, numpy_quick),
    "erf": (GELUFeedForwardConfig, {"form": "erf"}, references.gelu_erf),
    "tanh": (GELUFeedForwardConfig, {"form": "tanh"}, references.gelu_tanh),
}
each_case = pytest.mark.parametrize("name", CASES)
ENHANCEMENTS: dict[str, tuple[Enhancement, PlainFeedForwardConfig]] = {
    "use_gelu": (gelu(), GELUFeedForwardConfig(64)),
    "use_quick_gelu": (gelu("quick"), GELUFeedForwardConfig(64, form="quick")),
    "use_relu_squared": (relu_squared(), ReLUSquaredFeedForwardConfig(64)),
    "use_silu": (silu(), SiLUFeedForwardConfig(64)),
    "use_mish": (mish(), MishFeedForwardConfig(64)),
}


def built(name: str, **options: Any) -> FeedForward:
    part, form, _ = CASES[name]
    module = part(d_ff=80, **form, **options).build(WIDTH)
    assert isinstance(module, FeedForward)
    return module


def call() -> Context:
    layout = Layout.of(torch.zeros(3, 64, dtype=torch.long))
    return Context(layout, Mask(), Execution(scaled_dot_product_attention))


@each_case
@each_precision
def test_value_and_gradient(name: str, dtype: torch.dtype, tolerance: float) -> None:
    module, x = randomized(built(name), dtype), inputs(64, dtype)
    expected = references.feed_forward(array(x), weights_of(module), CASES[name][2])
    compare(module(x, call()), {"x": x}, module, expected, tolerance)


@each_case
def test_pointwise_far_from_zero(name: str) -> None:
    """Over ±50, where both tails are reached, the value and the slope are the definition's to a relative 1e-10."""
    z = torch.cat([torch.linspace(-50, 50, 4001, dtype=torch.float64), torch.zeros(1)]).requires_grad_()
    y = built(name).activation(z[None, :, None]).flatten()
    y.sum().backward()
    value, slope = CASES[name][2](array(z))
    np.testing.assert_allclose(array(y), value, rtol=1e-10, atol=1e-12)
    assert z.grad is not None
    np.testing.assert_allclose(array(z.grad), slope, rtol=1e-10, atol=1e-10)


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_no_overflow_for_large_inputs(name: str, dtype: torch.dtype) -> None:
    """At ±10⁴ (±200 for the square in float16) the value is 0 or what the function tends to, and the slope finite."""
    size = 200.0 if (name, dtype) == ("relu_squared", torch.float16) else 1e4
    z = torch.tensor([[[-size], [size]]], dtype=dtype, requires_grad=True)
    y = built(name).activation(z)
    y.sum().backward()
    limit = z[0, 1, 0].detach() ** (2 if name == "relu_squared" else 1)
    assert y[0, 0, 0].abs() <= 1e-30 and y[0, 1, 0] == limit
    assert z.grad is not None and z.grad.isfinite().all()


def test_second_references() -> None:
    """PyTorch's own modules, and Mish as its paper writes it."""
    z = torch.randn(1, 4000, 1, dtype=torch.float64) * 4
    torch.testing.assert_close(built("mish").activation(z), nn.Mish()(z), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        built("mish").activation(z), z * (1 + z.exp()).log().tanh(), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(built("silu").activation(z), nn.SiLU()(z), rtol=0, atol=1e-14)
    torch.testing.assert_close(built("relu_squared").activation(z), nn.ReLU()(z) ** 2, rtol=0, atol=0)
    torch.testing.assert_close(built("erf").activation(z), nn.GELU()(z), rtol=0, atol=0)


def test_transformers_agrees() -> None:
    """The activations of the `transformers` package, by the names that its configurations call them."""
    found = pytest.importorskip("transformers.activations").ACT2FN
    z = torch.randn(1, 4000, 1, dtype=torch.float64) * 4
    names = {"relu2": "relu_squared", "silu": "silu", "mish": "mish"}
    names |= {"quick_gelu": "quick", "gelu": "erf", "gelu_new": "tanh"}
    for theirs, ours in names.items():
        torch.testing.assert_close(built(ours).activation(z), found[theirs](z), rtol=0, atol=1e-13)


def test_known_values() -> None:
    """The least values that the docstrings name, and how far the forms of GELU lie apart."""
    z = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    for name, at, least in (("silu", -1.278, -0.278), ("mish", -1.192, -0.309)):
        y = built(name).activation(z[None, :, None]).flatten()
        assert y.min().item() == pytest.approx(least, abs=6e-4)
        assert z[y.argmin()].item() == pytest.approx(at, abs=6e-4)
    exact = F.gelu(z)
    assert 4e-4 < (F.gelu(z, approximate="tanh") - exact).abs().max() < 5e-4
    assert 0.020 < (quick_gelu(z) - exact).abs().max() < 0.021


@each_case
def test_inner_dropout_falls_on_the_activations(name: str) -> None:
    module = built(name, dropout=0.25, bias=False).train()
    seen: list[Tensor] = []
    module.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.rand(3, 64, WIDTH) + 0.5
    with torch.no_grad():
        module.up_proj.weight.fill_(0.1)  # every activation is positive: a zero is a dropped entry
        module(x, call())
        module.eval()(x, call())
    dropped, plain = seen
    share = (dropped == 0).double().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / dropped.numel()) ** 0.5
    torch.testing.assert_close(dropped[dropped != 0], plain[dropped != 0] / 0.75)


@pytest.mark.parametrize("flag", ENHANCEMENTS)
@pytest.mark.parametrize("before", ENHANCEMENTS)
def test_each_replaces_every_plain_network(before: str, flag: str) -> None:
    config = enhance(transformer(100, 16, 2, 2), ENHANCEMENTS[before][0], ENHANCEMENTS[flag][0])
    expected = ENHANCEMENTS[flag][1]
    if (before, flag) == ("use_quick_gelu", "use_gelu"):
        expected = ENHANCEMENTS[before][1]  # gelu() leaves the form that is there
    for stack in (config.encoder, config.decoder):
        assert [block.feed_forward for block in stack.blocks] == [expected] * 2


@pytest.mark.parametrize("flag", ENHANCEMENTS)
def test_width_dropout_and_bias_are_kept(flag: str) -> None:
    block = decoder_block(feed_forward=ReluFeedForwardConfig(33, dropout=0.3, bias=False))
    changed = enhance(block, ENHANCEMENTS[flag][0]).feed_forward
    assert (changed.d_ff, changed.dropout, changed.bias) == (33, 0.3, False)
    assert type(changed) is type(ENHANCEMENTS[flag][1])


@pytest.mark.parametrize("flag", ENHANCEMENTS)
def test_a_flag_is_its_enhancement(flag: str) -> None:
    config = transformer(100, 16, 2, 1)
    assert flag in SWITCHES
    assert apply_switches(config, {flag: True})[0] == enhance(config, ENHANCEMENTS[flag][0])


def test_gelu_keeps_the_form_of_gpt2_unless_another_is_named() -> None:
    config = gpt(100, 16, 2, 1)
    assert enhance(config, gelu()) == config == enhance(config, gelu("tanh"))
    for form in ("erf", "quick"):
        assert enhance(config, gelu(form)).stack.blocks[0].feed_forward.form == form
