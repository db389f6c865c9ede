"""Stochastic depth: which rows lose a branch, how often, and that a trained model is the plain one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import properties
from tests.base.test_references import array
from tests.catalog import decoder_block, decoder_only, each_kernel, encoder_decoder, make
from tests.properties import ARRANGEMENTS
from transformer.base import scaled_dot_product_attention
from transformer.base.attention import CrossAttentionConfig
from transformer.base.normalization import LayerNormConfig, NoNormConfig
from transformer.base.sockets import Context, Execution, Kernel, Layer, Layout, Mask, WiringConfig
from transformer.base.transformer import transformer
from transformer.base.wiring import PostNormConfig, PreNormConfig
from transformer.enhancements import enhance, pre_norm, stochastic_depth
from transformer.enhancements.architecture.stochastic_depth import PathDropout, StochasticDepthConfig
from transformer.models import build, gpt

ROWS, LENGTH, WIDTH = 400, 8, 6


class Linear(Layer):
    """A branch with one matrix."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.map = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, context: Context, state: Any = None) -> Tensor:
        return self.map(x)


def call(x: Tensor) -> Context:
    return Context(Layout.of(x[..., 0].detach().long()), Mask(True), Execution(scaled_dot_product_attention))


def wired(inner: WiringConfig, rate: float) -> tuple[Layer, Tensor]:
    branch = Linear(WIDTH).double()
    norm = LayerNormConfig() if isinstance(inner, PostNormConfig) else NoNormConfig()
    made = StochasticDepthConfig(inner, rate).build(WIDTH, branch, norm).double()
    return made.train(), torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_value_and_gradient(rate: float) -> None:
    """x + b x W / (1 − p) and its gradient, in NumPy, with the b of each row read off the output."""
    wiring, x = wired(PreNormConfig(0.0), rate)
    y = wiring(x, call(x))
    slope = torch.randn_like(y)
    y.backward(slope)
    w = array(wiring.branch.map.weight)
    changed = np.abs(array(y) - array(x)).max(axis=-1) > 0
    kept = changed.any(axis=1)
    assert (changed == kept[:, None]).all()  # a row loses the branch at every position or at none
    assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / ROWS) ** 0.5
    scale = kept[:, None, None] / (1 - rate)
    np.testing.assert_allclose(array(y), array(x) + scale * (array(x) @ w.T), rtol=0, atol=1e-10)
    assert x.grad is not None and wiring.branch.map.weight.grad is not None
    dy = array(slope)
    np.testing.assert_allclose(array(x.grad), dy + scale * (dy @ w), rtol=0, atol=1e-10)
    dw = (scale * dy).reshape(-1, WIDTH).T @ array(x).reshape(-1, WIDTH)
    np.testing.assert_allclose(array(wiring.branch.map.weight.grad), dw, rtol=0, atol=1e-9)


def test_post_norm_drops_the_branch_and_not_the_norm() -> None:
    wiring, x = wired(PostNormConfig(0.0), 0.5)
    y = wiring(x, call(x))
    alone = nn.functional.layer_norm(x, (WIDTH,))
    dropped = (y - alone).abs().amax(dim=(1, 2)) < 1e-12
    assert 0.35 < dropped.double().mean() < 0.65


def test_the_mean_is_what_the_trained_model_computes() -> None:
    """Over many draws the branch has the size that it has in eval mode."""
    wiring, x = wired(PreNormConfig(0.0), 0.4)
    with torch.no_grad():
        row = x[:1].expand(ROWS, -1, -1)
        mean = torch.stack([wiring(row, call(row)) for _ in range(50)]).mean(dim=(0, 1))
        exact = wiring.eval()(row, call(row))[0]
    error = (mean - exact).abs().max() / (exact - row[0]).abs().max()
    assert error < 4 * (0.4 / 0.6 / (50 * ROWS)) ** 0.5


def test_dropout_of_entries_stays() -> None:
    wiring, x = wired(PreNormConfig(0.25), 0.5)
    added = (wiring(x, call(x)) - x).detach()
    kept = added[added.abs().amax(dim=(1, 2)) > 0]
    assert 0.22 < (kept == 0).double().mean() < 0.28


def test_the_rate_grows_with_depth_in_each_stack() -> None:
    config = enhance(transformer(50, 24, 4, 4), stochastic_depth(0.2))
    for stack in (config.encoder, config.decoder):
        rates = [block.wiring.rate for block in stack.blocks]
        assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])
        assert all(block.wiring.wiring == PostNormConfig(0.1) for block in stack.blocks)
    assert enhance(config, stochastic_depth(0.2)) == config
    once = enhance(transformer(50, 24, 4, 4), stochastic_depth(0.2), pre_norm())
    assert once == enhance(transformer(50, 24, 4, 4), pre_norm(), stochastic_depth(0.2))


def test_a_trained_model_is_the_plain_one() -> None:
    """No parameter more, the same names, and the same bits in eval mode."""
    config = gpt(11, 24, 4, 2, max_seq_len=40)
    plain, deep = build(config).eval(), build(enhance(config, stochastic_depth(0.5))).eval()
    assert sum(isinstance(module, PathDropout) for module in deep.modules()) == 4
    deep.load_state_dict(plain.state_dict())
    x = properties.tokens(3, 9)
    assert torch.equal(plain(x), deep(x))
    assert not torch.equal(deep.train()(x), deep(x))


def deep_config() -> Any:
    block = decoder_block(wiring=StochasticDepthConfig(PostNormConfig(0.2), 0.5))
    return decoder_only(block)


@each_kernel
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_causal_while_dropping(kernel: Kernel, arrangement: str) -> None:
    properties.check_causality(deep_config(), kernel, True, ARRANGEMENTS[arrangement], sparse=True)


@each_kernel
def test_invariants_while_dropping(kernel: Kernel) -> None:
    config = deep_config()
    properties.check_prefixes(config, kernel, True)
    properties.check_checkpointing(config, kernel)
    properties.check_stepwise(config, kernel)
    block = config.stack.blocks[0]
    pair = encoder_decoder(block, replace(block, cross_attention=CrossAttentionConfig(3)))
    properties.check_prefixes(pair, kernel, True)
    properties.check_checkpointing(pair, kernel)


def test_a_dropped_row_is_dropped_alone() -> None:
    """Rows of a batch are drawn by themselves: equal rows come out different."""
    model = make(deep_config()).train()
    x = properties.tokens(1, 8).expand(16, -1)
    assert len({tuple(row.flatten().tolist()) for row in model(x).detach()}) > 8


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_is_a_probability(rate: float) -> None:
    message = rf"^the rate of stochastic depth is a probability from 0 to below 1, got {rate}; try 0.1$"
    with pytest.raises(ValueError, match=message):
        stochastic_depth(rate)


def test_a_wiring_without_dropout_is_refused() -> None:
    class Bare(Linear):
        pass

    class BareConfig(WiringConfig):
        def build(self, d_model: int, branch: Layer, norm: Any) -> Layer:
            return Bare(d_model)

    message = (
        r"^stochastic depth acts on the dropout of a wiring, and Bare is none with one; "
        r"use post_norm, pre_norm or another that adds one branch to the stream$"
    )
    with pytest.raises(ValueError, match=message):
        StochasticDepthConfig(BareConfig(), 0.1).build(WIDTH, Linear(WIDTH), NoNormConfig())
