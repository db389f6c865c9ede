"""Each part against its definition in float64 NumPy: values, and gradients worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import references
from tests.catalog import each_kernel
from transformer.base import (
    CrossAttention,
    FeedForward,
    LayerNorm,
    MultiHeadAttention,
    scaled_dot_product_attention,
)
from transformer.base.sockets import Context, Execution, Kernel, Layout, Mask, Memory
from transformer.enhancements.feed_forward.gelu import GELUFeedForward
from transformer.enhancements.normalization.rms_norm import RMSNorm
from transformer.enhancements.position.rope import RotaryPosition

WIDTH, HEADS, LENGTHS = 48, 12, (70, 33, 1)
each_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)


def randomized(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5 + 0.1)
    return module.to(dtype)


def weights_of(module: nn.Module) -> dict[str, references.Array]:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def array(x: Tensor) -> references.Array:
    return x.detach().double().numpy()


def compare(
    output: Tensor, inputs: dict[str, Tensor], module: nn.Module, expected: Any, tolerance: float
) -> None:
    """Compare the value, and the gradients by the inputs and every parameter, for a random gradient of the output."""
    value, backward = expected
    slope = torch.randn_like(output) / output.shape[1]
    output.backward(slope)
    gradients = backward(array(slope))
    actual = {name: x.grad for name, x in inputs.items()}
    actual |= {name: p.grad for name, p in module.named_parameters()}
    assert set(actual) == set(gradients)
    for name, ours, theirs in [("y", output, value), *((n, actual[n], gradients[n]) for n in actual)]:
        # softmax does not see a number added to all its scores, so without RoPE a bias on the keys has no gradient
        assert ours is not None and (np.abs(theirs).max() > 1e-4 or name.endswith("k_proj.bias")), name
        error = np.abs(array(ours) - theirs).max()
        assert error <= tolerance * max(1.0, np.abs(theirs).max()), f"{name}: {error}"


def inputs(length: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(len(LENGTHS), length, WIDTH, dtype=torch.float64) + 0.3).to(dtype).requires_grad_()


def real_tokens() -> Tensor:
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def context_of(kernel: Kernel, layout: Layout, mask: Mask, **options: Any) -> Context:
    return Context(layout, mask, Execution(kernel), **options)


@each_precision
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])  # a large ε tells inside the root from outside
def test_layer_norm(epsilon: float, dtype: torch.dtype, tolerance: float) -> None:
    module, x = randomized(LayerNorm(WIDTH, epsilon), dtype), inputs(64, dtype)
    w = weights_of(module)
    expected = references.layer_norm(array(x), w["weight"], w["bias"], epsilon)
    compare(module(x), {"x": x}, module, expected, tolerance)


@each_precision
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_rms_norm(epsilon: float, dtype: torch.dtype, tolerance: float) -> None:
    module, x = randomized(RMSNorm(WIDTH, epsilon), dtype), inputs(64, dtype)
    expected = references.rms_norm(array(x), weights_of(module)["weight"], epsilon)
    compare(module(x), {"x": x}, module, expected, tolerance)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_norms_keep_their_precision_where_the_input_is_coarse(norm: type[nn.Module]) -> None:
    """In bfloat16 and for inputs of any size, the result is the exact one rounded: no square is lost on the way."""
    for scale in (2.0**-10, 1.0, 2.0**10):
        x = (torch.randn(2, 64, WIDTH) * scale).bfloat16()
        exact = norm(WIDTH, 1e-12).double()(x.double())
        assert (norm(WIDTH, 1e-12).bfloat16()(x) - exact).abs().max() <= 2.0**-8 * exact.abs().max()


@each_precision
@pytest.mark.parametrize("form", ["relu", "erf", "tanh"])
def test_feed_forward(form: Any, dtype: torch.dtype, tolerance: float) -> None:
    made = FeedForward(WIDTH, 80) if form == "relu" else GELUFeedForward(WIDTH, 80, 0.0, True, form)
    module, x = randomized(made, dtype), inputs(64, dtype)
    activations = {"relu": references.relu, "erf": references.gelu_erf, "tanh": references.gelu_tanh}
    expected = references.feed_forward(array(x), weights_of(module), activations[form])
    context = context_of(
        scaled_dot_product_attention, Layout.of(torch.zeros(3, 64, dtype=torch.long)), Mask()
    )
    compare(module(x, context), {"x": x}, module, expected, tolerance)


@each_precision
@each_kernel
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("rotary", [False, True], ids=["plain", "rope"])
def test_self_attention(
    rotary: bool, causal: bool, kernel: Kernel, dtype: torch.dtype, tolerance: float
) -> None:
    module = randomized(MultiHeadAttention(WIDTH, HEADS, bias=True), dtype)
    x, real = inputs(max(LENGTHS), dtype), real_tokens()
    layout = Layout.of(real.long(), real)
    positions = np.minimum(np.arange(max(LENGTHS))[None], np.array(LENGTHS)[:, None] - 1).astype(np.float64)
    options = {"position": RotaryPosition()} if rotary else {}
    # every query sees the real keys at its position or before; padding stands where the last real token does
    visible = np.broadcast_to(array(real)[:, None, :] > 0, (3, 70, 70))
    if causal:
        visible = visible & (positions[:, :, None] >= positions[:, None, :])
    value, backward = references.multi_head_attention(
        array(x), array(x), weights_of(module), HEADS, visible, positions if rotary else None
    )

    def to_one_input(dy: references.Array) -> dict[str, Any]:
        gradients = backward(dy)
        return {"x": gradients.pop("x") + gradients.pop("memory"), **gradients}

    output = module(x, context_of(kernel, layout, Mask(causal=causal), **options))
    compare(output, {"x": x}, module, (value, to_one_input), tolerance)


@each_precision
@each_kernel
def test_cross_attention(kernel: Kernel, dtype: torch.dtype, tolerance: float) -> None:
    module = randomized(CrossAttention(WIDTH, HEADS, bias=True), dtype)
    x, hidden, real = inputs(66, dtype), inputs(max(LENGTHS), dtype), real_tokens()
    memory = Memory(hidden, Layout.of(real.long(), real))
    context = context_of(kernel, Layout.of(torch.zeros(3, 66, dtype=torch.long)), Mask(True), memory=memory)
    visible = np.broadcast_to(array(real)[:, None, :] > 0, (3, 66, 70))
    expected = references.multi_head_attention(array(x), array(hidden), weights_of(module), HEADS, visible)
    compare(module(x, context), {"x": x, "memory": hidden}, module, expected, tolerance)


def test_the_references_agree_with_finite_differences() -> None:
    """The hand-worked gradients, checked without autograd: (f(x + h) − f(x − h)) / 2h along random directions."""
    rng = np.random.default_rng(0)
    x, shape = rng.normal(size=(2, 5, 8)), (8, 8)
    names = [f"{n}_proj.{kind}" for n in ("q", "k", "v", "out") for kind in ("weight", "bias")]
    weights = {n: rng.normal(size=shape if "weight" in n else 8) / 3 for n in names}
    visible = np.tril(np.ones((2, 5, 5), dtype=bool))
    positions = np.broadcast_to(np.arange(5.0), (2, 5))
    wide = {"up_proj.weight": rng.normal(size=(9, 8)), "up_proj.bias": rng.normal(size=9)}
    wide |= {"down_proj.weight": rng.normal(size=(8, 9)), "down_proj.bias": rng.normal(size=8)}

    def attention(x: references.Array) -> Any:
        return references.multi_head_attention(x, np.ones_like(x), weights, 2, visible, positions)

    functions: list[Any] = [attention]
    functions += [
        lambda x, a=a: references.feed_forward(x, wide, a)
        for a in (references.gelu_erf, references.gelu_tanh)
    ]
    functions += [lambda x: references.layer_norm(x, weights["q_proj.bias"], weights["k_proj.bias"], 0.1)]
    functions += [lambda x: references.rms_norm(x, weights["q_proj.bias"], 0.1)]
    for function in functions:
        value, backward = function(x)
        slope, direction, h = rng.normal(size=value.shape), rng.normal(size=x.shape), 1e-5
        difference = ((function(x + h * direction)[0] - function(x - h * direction)[0]) * slope).sum() / (
            2 * h
        )
        assert abs((backward(slope)["x"] * direction).sum() - difference) <= 1e-7 * max(1, abs(difference))
