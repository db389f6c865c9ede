"""The wirings against their definitions, around attention and around a feed-forward network, and in whole stacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import references
from tests.base.test_references import (
    HEADS,
    LENGTHS,
    WIDTH,
    array,
    compare,
    context_of,
    inputs,
    randomized,
    real_tokens,
    weights_of,
)
from tests.enhancements.normalization import definitions
from transformer.base import FeedForward, LayerNorm, MultiHeadAttention, scaled_dot_product_attention
from transformer.base.attention import MultiHeadAttentionConfig
from transformer.base.feed_forward import ReluFeedForwardConfig
from transformer.base.normalization import LayerNormConfig
from transformer.base.position import NoPositionConfig
from transformer.base.sockets import Context, Layer, Layout, Mask
from transformer.base.stack import BlockConfig, Stack, StackConfig
from transformer.base.wiring import PostNormConfig
from transformer.enhancements import resi_dual
from transformer.enhancements.architecture.residual_multiplier import ResidualMultiplier
from transformer.enhancements.normalization.deep_norm import DeepNorm
from transformer.enhancements.normalization.layer_scale import LayerScale
from transformer.enhancements.normalization.post_sublayer_norm import PostSublayerNorm
from transformer.enhancements.normalization.resi_dual import ResiDual, ResiDualNorm
from transformer.enhancements.normalization.sandwich_norm import SandwichNorm

EPSILON = 1e-5
each_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
each_branch = pytest.mark.parametrize("kind", ["attention", "feed_forward"])
Weights = dict[str, references.Array]


def below(prefix: str, weights: Weights) -> Weights:
    return {
        name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")
    }


def norm_of(weights: Weights) -> definitions.Function:
    return lambda x: references.layer_norm(x, weights["weight"], weights["bias"], EPSILON)


def branch_of(kind: str, weights: Weights) -> definitions.Function:
    """Causal attention of 12 heads over rows of 70, 33 and 1 real tokens, or the feed-forward network."""
    if kind == "feed_forward":
        return lambda x: references.feed_forward(x, weights, references.relu)
    positions = np.minimum(np.arange(max(LENGTHS))[None], np.array(LENGTHS)[:, None] - 1)
    visible = (array(real_tokens())[:, None, :] > 0) & (positions[:, :, None] >= positions[:, None, :])

    def attention(x: references.Array) -> Any:
        value, backward = references.multi_head_attention(x, x, weights, HEADS, visible)

        def to_one_input(dy: references.Array) -> dict[str, Any]:
            gradients = backward(dy)
            return {"x": gradients.pop("x") + gradients.pop("memory"), **gradients}

        return value, to_one_input

    return attention


def branch_module(kind: str) -> Layer:
    return FeedForward(WIDTH, 80) if kind == "feed_forward" else MultiHeadAttention(WIDTH, HEADS, bias=True)


def causal() -> Context:
    real = real_tokens()
    return context_of(scaled_dot_product_attention, Layout.of(real.long(), real), Mask(causal=True))


def check(
    kind: str, make: Callable[[Layer], nn.Module], define: Any, dtype: torch.dtype, tolerance: float
) -> None:
    module, x = randomized(make(branch_module(kind)), dtype), inputs(max(LENGTHS), dtype)
    w = weights_of(module)
    expected = define(array(x), branch_of(kind, below("branch", w)), norm_of(below("norm", w)), w)
    compare(module(x, causal()), {"x": x}, module, expected, tolerance)


@each_precision
@each_branch
def test_sandwich_norm(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    def define(x: Any, branch: Any, norm: Any, w: Weights) -> Any:
        return definitions.sandwich(x, branch, norm, norm_of(below("output_norm", w)))

    check(kind, lambda f: SandwichNorm(f, LayerNorm(WIDTH), LayerNorm(WIDTH)), define, dtype, tolerance)


@each_precision
@each_branch
def test_post_sublayer_norm(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    def define(x: Any, branch: Any, norm: Any, w: Weights) -> Any:
        return definitions.post_sublayer(x, branch, norm)

    check(kind, lambda f: PostSublayerNorm(f, LayerNorm(WIDTH)), define, dtype, tolerance)


@each_precision
@each_branch
def test_deep_norm(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    def define(x: Any, branch: Any, norm: Any, w: Weights) -> Any:
        return definitions.deep_norm(x, branch, norm, 2.21)

    check(kind, lambda f: DeepNorm(f, LayerNorm(WIDTH), 0.0, 2.21, 0.32), define, dtype, tolerance)


@each_precision
@each_branch
def test_layer_scale(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    def define(x: Any, branch: Any, norm: Any, w: Weights) -> Any:
        return definitions.layer_scale(x, branch, norm, w["weight"])

    check(kind, lambda f: LayerScale(WIDTH, f, LayerNorm(WIDTH)), define, dtype, tolerance)


@each_precision
@each_branch
def test_residual_multiplier(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    def define(x: Any, branch: Any, norm: Any, w: Weights) -> Any:
        return definitions.residual_multiplier(x, branch, norm, 0.22)

    check(kind, lambda f: ResidualMultiplier(f, LayerNorm(WIDTH), 0.0, 0.22), define, dtype, tolerance)


@each_precision
def test_resi_dual_stack(dtype: torch.dtype, tolerance: float) -> None:
    """Three whole blocks: the two recurrences of the paper, forward and backward."""
    block = BlockConfig(
        MultiHeadAttentionConfig(HEADS, bias=True), ReluFeedForwardConfig(80), wiring=PostNormConfig(0.0)
    )
    config = resi_dual()(StackConfig((block,) * 3, NoPositionConfig(), dropout=0.0))
    module, x = randomized(config.build(WIDTH), dtype), inputs(max(LENGTHS), dtype)
    with torch.no_grad():  # without gains near 1, little would reach the attention of the later blocks
        for norm in module.modules():
            if isinstance(norm, LayerNorm):
                norm.weight.add_(1)
    w = weights_of(module)
    branches = []
    for i in range(3):
        for name, kind in (("mixer", "attention"), ("feed_forward", "feed_forward")):
            path = f"blocks.{i}.{name}"
            inner = below(path, w)
            branches.append((path, branch_of(kind, below("branch", inner)), norm_of(below("norm", inner))))
    expected = definitions.resi_dual(array(x), branches, norm_of(below("norm.norm", w)))
    compare(module(x, causal()), {"x": x}, module, expected, tolerance)


def test_the_definitions_agree_with_finite_differences() -> None:
    rng = np.random.default_rng(0)
    x, gain, shift = rng.normal(size=(2, 5, 8)), rng.normal(size=8), rng.normal(size=8)
    wide = {"up_proj.weight": rng.normal(size=(9, 8)), "up_proj.bias": rng.normal(size=9)}
    wide |= {"down_proj.weight": rng.normal(size=(8, 9)), "down_proj.bias": rng.normal(size=8)}

    def norm(x: references.Array) -> Any:
        return references.layer_norm(x, gain, shift, 0.1)

    def branch(x: references.Array) -> Any:
        return references.feed_forward(x, wide, references.gelu_erf)

    functions: list[Any] = [
        lambda x: definitions.sandwich(x, branch, norm, norm),
        lambda x: definitions.post_sublayer(x, branch, norm),
        lambda x: definitions.deep_norm(x, branch, norm, 1.7),
        lambda x: definitions.layer_scale(x, branch, norm, gain),
        lambda x: definitions.resi_dual(x, [("a", branch, norm), ("b", branch, norm)], norm),
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


# ---------------------------------------------------------------- where the dropout falls


class Ones(Layer):
    """A branch that is 1 everywhere."""

    def forward(self, x: Tensor, context: Context, state: Any = None) -> Tensor:
        return torch.ones_like(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SandwichNorm(Ones(), nn.Identity(), nn.Identity(), 0.5),
        lambda: PostSublayerNorm(Ones(), nn.Identity(), 0.5),
        lambda: DeepNorm(Ones(), nn.Identity(), 0.5, 1.0, 1.0),
        lambda: LayerScale(WIDTH, Ones(), nn.Identity(), 0.5, 1.0),
        lambda: ResiDual(WIDTH, Ones(), nn.Identity(), 0.5),
    ],
    ids=["sandwich", "post_sublayer", "deep_norm", "layer_scale", "resi_dual"],
)
def test_dropout_falls_on_what_is_added(make: Callable[[], nn.Module]) -> None:
    module, x = make(), torch.randn(3, 70, WIDTH)
    change = module(x, causal()) - torch.cat([x, x], -1)[..., : module(x, causal()).shape[-1]]
    values = change.round(decimals=4).unique()
    assert torch.equal(values, torch.tensor([0.0, 2.0]))
    assert 0.45 < (change > 1).float().mean() < 0.55
    if isinstance(module, ResiDual):  # both streams get the same change
        torch.testing.assert_close(change[..., :WIDTH], change[..., WIDTH:])
    module.eval()
    assert torch.equal(module(x, causal())[..., :WIDTH], x + 1)


# ---------------------------------------------------------------- two streams


@torch.no_grad()
def test_the_streams_of_resi_dual_open_with_the_first_sublayer_and_close_with_the_norm() -> None:
    block = BlockConfig(MultiHeadAttentionConfig(HEADS), ReluFeedForwardConfig(80))
    stack: Stack = resi_dual()(StackConfig((block,) * 2, NoPositionConfig())).build(WIDTH).eval()
    shapes: list[int] = []
    for part in stack.modules():
        if isinstance(part, ResiDual | ResiDualNorm):
            part.register_forward_hook(lambda module, args, out: shapes.append(out.shape[-1]))
    x = inputs(max(LENGTHS), torch.float32).detach()
    y = stack(x, causal())
    assert shapes == [2 * WIDTH] * 4 + [WIDTH] and y.shape == x.shape
    wiring = stack.blocks[0].get_submodule("mixer")
    assert torch.equal(wiring(x, causal()), wiring(torch.cat([x, x], dim=-1), causal()))
    assert ResiDualNorm(WIDTH, LayerNormConfig().build(WIDTH))(wiring(x, causal())).shape == x.shape
