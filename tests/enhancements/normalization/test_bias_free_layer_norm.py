"""LayerNorm without bias against its definition, and against the general one with a bias of 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.base.test_references import array, compare, inputs, randomized
from tests.references import Array, Backward, layer_norm
from transformer.enhancements import bias_free_layer_norm, enhance
from transformer.enhancements.normalization.bias_free_layer_norm import (
    BiasFreeLayerNorm,
    BiasFreeLayerNormConfig,
)
from transformer.models import build, gpt

WIDTH = 48


def definition(x: Array, gain: Array, epsilon: float) -> tuple[Array, Backward]:
    """γ (x − μ) / √(σ² + ε)."""
    y, back = layer_norm(x, gain, np.zeros(x.shape[-1]), epsilon)
    return y, lambda dy: {name: back(dy)[name] for name in ("x", "weight")}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])  # a large ε tells inside the root from outside
def test_against_the_definition(epsilon: float, dtype: torch.dtype, tolerance: float) -> None:
    module, x = randomized(BiasFreeLayerNorm(WIDTH, epsilon), dtype), inputs(64, dtype)
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    expected = definition(array(x), array(module.weight), epsilon)
    compare(module(x), {"x": x}, module, expected, tolerance)


def test_it_is_pytorchs_with_a_bias_of_zero() -> None:
    ours, theirs = BiasFreeLayerNorm(WIDTH), nn.LayerNorm(WIDTH)
    x = torch.randn(7, WIDTH) + 3
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_every_norm_of_a_model_becomes_one() -> None:
    model = build(enhance(gpt(50, 24, 3, 2), bias_free_layer_norm(1e-3)))
    norms = [module for module in model.modules() if isinstance(module, BiasFreeLayerNorm)]
    assert len(norms) == 5
    assert all(norm.epsilon == 1e-3 for norm in norms)
    assert build(model.config).state_dict().keys() == model.state_dict().keys()
    assert BiasFreeLayerNormConfig() == BiasFreeLayerNormConfig(1e-5)
