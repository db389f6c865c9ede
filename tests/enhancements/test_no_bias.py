"""`no_bias` leaves no linear map with a bias, in every model and beside every other switch."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from transformer.base import LayerNorm
from transformer.base.attention import MultiHeadAttentionConfig
from transformer.base.sockets import Config
from transformer.base.transformer import transformer
from transformer.enhancements import SWITCHES, apply_switches, enhance, no_bias, rms_norm, rope, swiglu
from transformer.models import ModelConfig, build, gpt

MODELS = {"gpt": gpt(50, 24, 4, 2), "transformer": transformer(50, 24, 4, 2)}
each_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())


def with_bias(value: Any) -> list[Config]:
    """Every part, at any depth, whose bias is on."""
    if isinstance(value, tuple):
        return [part for item in value for part in with_bias(item)]
    if not isinstance(value, Config):
        return []
    inside = [part for field in fields(value) for part in with_bias(getattr(value, field.name))]
    return inside + [value] * (getattr(value, "bias", False) is True)


@each_model
def test_no_linear_map_has_a_bias(config: ModelConfig) -> None:
    assert with_bias(config)
    changed = enhance(config, no_bias())
    assert not with_bias(changed)
    with torch.device("meta"):
        before, after = build(config), build(changed)
    assert any(isinstance(m, nn.Linear) and m.bias is not None for m in before.modules())
    assert not any(isinstance(m, nn.Linear) and m.bias is not None for m in after.modules())
    gone = set(dict(before.named_parameters())) - set(dict(after.named_parameters()))
    linear = {name for name, module in before.named_modules() if isinstance(module, nn.Linear)}
    assert gone and {name.rpartition(".")[0] for name in gone} <= linear
    assert {name.rpartition(".")[2] for name in gone} == {"bias"}


def test_the_shift_of_layer_norm_stays_and_rms_norm_has_none() -> None:
    with torch.device("meta"):
        model = build(enhance(MODELS["gpt"], no_bias()))
        assert any(isinstance(module, LayerNorm) for module in model.modules())
        names = dict(build(enhance(MODELS["gpt"], no_bias(), rms_norm())).named_parameters())
    assert not [name for name in names if "bias" in name]


@each_model
@pytest.mark.parametrize("flag", SWITCHES)
def test_beside_every_other_switch(config: ModelConfig, flag: str) -> None:
    changed, _ = apply_switches(config, {flag: True, "use_no_bias": True})
    assert not with_bias(changed)


@each_model
def test_it_changes_nothing_else_and_can_be_repeated(config: ModelConfig) -> None:
    once = enhance(config, no_bias())
    assert enhance(once, no_bias()) == once != config
    assert enhance(config, no_bias(), rope()) == enhance(config, rope(), no_bias())
    assert type(once) is type(config) and once.initialization == config.initialization
    for part in with_bias(config):
        if isinstance(part, MultiHeadAttentionConfig):
            assert enhance(part, no_bias()) == MultiHeadAttentionConfig(part.n_heads, part.dropout, False)


def test_a_gate_matches_the_network_that_is_there() -> None:
    """Two thirds of d_ff exactly where the biases went first, as the switches have it."""
    widths = [
        config.stack.blocks[0].feed_forward.d_ff
        for config in (
            enhance(gpt(50, 768, 12, 1), no_bias(), swiglu()),
            apply_switches(gpt(50, 768, 12, 1), {"use_swiglu": True, "use_no_bias": True})[0],
            enhance(gpt(50, 768, 12, 1), swiglu(), no_bias()),
        )
    ]
    assert widths == [2048, 2048, 2050]
