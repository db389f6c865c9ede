"""Scaled rotary frequencies: each rule against a loop over its equation, and against Hugging Face's."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.catalog import make
from tests.enhancements.position.helpers import in_segments, language_model
from tests.properties import tokens
from transformer.enhancements import enhance, rope
from transformer.enhancements.position.longrope import LongRopeScalingConfig
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.enhancements.position.rope_scaling import (
    DynamicNTKRopeScalingConfig,
    LinearRopeScalingConfig,
    Llama3RopeScalingConfig,
    NoRopeScalingConfig,
    NTKRopeScalingConfig,
    RopeScalingConfig,
)
from transformer.enhancements.position.yarn import YaRNRopeScalingConfig
from transformer.models import gpt

SHORT, LONG = (1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0), (1.0, 1.5, 2.5, 4.0, 8.0, 16.0, 24.0, 32.0)
LONGROPE = LongRopeScalingConfig(SHORT, LONG, factor=32.0, original_length=4096)


def llama3_by_hand(scaling: Llama3RopeScalingConfig, theta: float) -> float:
    low, high, known = scaling.low_frequency_factor, scaling.high_frequency_factor, scaling.original_length
    wavelength = 2 * math.pi / theta
    if wavelength < known / high:
        return theta
    if wavelength > known / low:
        return theta / scaling.factor
    t = (known / wavelength - low) / (high - low)
    return (1 - t) * theta / scaling.factor + t * theta


def yarn_by_hand(scaling: YaRNRopeScalingConfig, theta: float, j: int, e: int, base: float) -> float:
    first, last = (
        e * math.log(scaling.original_length / (2 * math.pi * turns)) / (2 * math.log(base))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.ramp == "rounded":
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, e - 1)
    gamma = min(max((j - first) / (last - first), 0.0), 1.0)
    return theta * (1 - gamma) + theta / scaling.factor * gamma


def dynamic_by_hand(scaling: DynamicNTKRopeScalingConfig, j: int, e: int, base: float, length: int) -> float:
    s, known = scaling.factor, scaling.original_length
    stretch = 1.0 if length <= known else s * length / known - (s - 1)
    return math.pow(base * stretch ** (e / (e - 2)), -2 * j / e)


def by_hand(scaling: Any, e: int, base: float, length: int | None) -> list[float]:
    """Each frequency by itself, in Python numbers."""
    factors = LONG if length is not None and length > 4096 else SHORT
    rules: dict[type, Any] = {
        NoRopeScalingConfig: lambda j, x: x,
        LinearRopeScalingConfig: lambda j, x: x / scaling.factor,
        NTKRopeScalingConfig: lambda j, x: math.pow(base * scaling.factor ** (e / (e - 2)), -2 * j / e),
        DynamicNTKRopeScalingConfig: lambda j, x: dynamic_by_hand(scaling, j, e, base, length or 0),
        Llama3RopeScalingConfig: lambda j, x: llama3_by_hand(scaling, x),
        YaRNRopeScalingConfig: lambda j, x: yarn_by_hand(scaling, x, j, e, base),
        LongRopeScalingConfig: lambda j, x: x / factors[j],
    }
    return [rules[type(scaling)](j, math.pow(base, -2 * j / e)) for j in range(e // 2)]


CASES: list[tuple[RopeScalingConfig, int, float, int | None, float]] = [
    (NoRopeScalingConfig(), 16, 10000.0, None, 1.0),
    (LinearRopeScalingConfig(4.0), 16, 10000.0, None, 1.0),
    (NTKRopeScalingConfig(4.0), 16, 10000.0, None, 1.0),
    (DynamicNTKRopeScalingConfig(4.0, 2048), 16, 10000.0, 5000, 1.0),
    (DynamicNTKRopeScalingConfig(4.0, 2048), 16, 10000.0, 500, 1.0),
    (Llama3RopeScalingConfig(), 32, 500000.0, None, 1.0),
    (Llama3RopeScalingConfig(32.0), 128, 500000.0, None, 1.0),
    (YaRNRopeScalingConfig(4.0, 2048), 32, 10000.0, None, 0.1 * math.log(4) + 1),
    (YaRNRopeScalingConfig(40.0, 4096, 16.0, 2.0, "exact"), 32, 10000.0, None, 0.1 * math.log(40) + 1),
    (YaRNRopeScalingConfig(40.0, 4096, attention_factor=0.7), 64, 10000.0, None, 0.7),
    (LONGROPE, 16, 10000.0, 4096, math.sqrt(17 / 12)),
    (LONGROPE, 16, 10000.0, 4097, math.sqrt(17 / 12)),
]


@pytest.mark.parametrize(("scaling", "e", "base", "length", "attention"), CASES)
def test_frequencies_are_those_of_the_equation(
    scaling: RopeScalingConfig, e: int, base: float, length: int | None, attention: float
) -> None:
    frequencies, factor = scaling.frequencies(e, base, length)
    expected = np.array(by_hand(scaling, e, base, length))
    assert frequencies.dtype == torch.float64
    assert np.abs(frequencies.numpy() / expected - 1).max() <= 1e-14
    assert factor == pytest.approx(attention, rel=1e-14)


def theirs(scaling: RopeScalingConfig, e: int, base: float, length: int | None) -> tuple[Any, float]:
    """The frequencies and the attention factor that Hugging Face's code computes for the same settings."""
    huggingface = pytest.importorskip("transformers", reason="Hugging Face's transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    original = {"original_max_position_embeddings": getattr(scaling, "original_length", None)}
    kind, settings = {
        LinearRopeScalingConfig: ("linear", {}),
        DynamicNTKRopeScalingConfig: ("dynamic", {}),
        Llama3RopeScalingConfig: ("llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **original}),
        YaRNRopeScalingConfig: ("yarn", original),
        LongRopeScalingConfig: ("longrope", {"short_factor": SHORT, "long_factor": LONG, **original}),
    }[type(scaling)]
    if isinstance(scaling, YaRNRopeScalingConfig):
        settings |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        settings |= {"truncate": scaling.ramp == "rounded", "attention_factor": scaling.attention_factor}
    config = huggingface.LlamaConfig(
        hidden_size=4 * e,
        num_attention_heads=4,
        head_dim=e,
        max_position_embeddings=getattr(scaling, "original_length", 2048),
        rope_parameters={"rope_type": kind, "rope_theta": base, "factor": scaling.factor, **settings},  # type: ignore[attr-defined]
    )
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)


@pytest.mark.parametrize(
    ("scaling", "e", "base", "length"),
    [case[:4] for case in CASES if not isinstance(case[0], NoRopeScalingConfig | NTKRopeScalingConfig)],
)
def test_frequencies_are_hugging_faces(
    scaling: RopeScalingConfig, e: int, base: float, length: int | None
) -> None:
    """Where `transformers` is installed; its float32 rounds the frequencies."""
    frequencies, factor = scaling.frequencies(e, base, length)
    expected, attention = theirs(scaling, e, base, length)
    torch.testing.assert_close(frequencies, expected.double(), rtol=1e-6, atol=0)
    assert factor == pytest.approx(attention, rel=1e-12)


def test_frequencies_are_those_that_hugging_face_was_seen_to_compute() -> None:
    """Figures noted from transformers 5.23.0, float32: one frequency in the middle of each rule's blend."""
    noted = [
        (CASES[3], 3, 0.013936501),
        (CASES[5], 8, 0.00052484602),
        (CASES[7], 7, 0.012066896),
        (CASES[8], 8, 0.0057901046),
        (CASES[10], 4, 0.0076923077),
        (CASES[11], 4, 0.00125),
    ]
    for (scaling, e, base, length, _), pair, frequency in noted:
        assert scaling.frequencies(e, base, length)[0][pair].item() == pytest.approx(
            frequency, rel=5e-7
        )  # float32, a few operations


def test_yarn_keeps_the_fast_pairs_and_interpolates_the_slow_ones() -> None:
    """The ramp the right way up: public code has had it inverted."""
    theta, _ = NoRopeScalingConfig().frequencies(64, 10000.0, None)
    scaled, _ = YaRNRopeScalingConfig(4.0, 2048).frequencies(64, 10000.0, None)
    assert torch.equal(scaled[0], theta[0]) and torch.equal(scaled[-1], theta[-1] / 4)
    assert (scaled / theta).diff().max() <= 1e-15  # more and more divided
    turns = 2048 * theta / (2 * math.pi)
    assert torch.equal(scaled[turns > 40], theta[turns > 40])
    assert torch.equal(scaled[turns < 0.7], theta[turns < 0.7] / 4)


def test_interpolated_positions_are_those_between() -> None:
    """Linear scaling by s at position s·n turns by the angle of position n."""
    plain, scaled = (
        RotaryPositionConfig().build(8),
        RotaryPositionConfig(scaling=LinearRopeScalingConfig(4.0)).build(8),
    )
    at = torch.arange(9)[None]
    for ours, expected in zip(scaled.circle(4 * at, 8), plain.circle(at, 8), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)


def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest() -> None:
    plain, _ = NoRopeScalingConfig().frequencies(32, 10000.0, None)
    scaled, _ = NTKRopeScalingConfig(4.0).frequencies(32, 10000.0, None)
    assert scaled[0] == plain[0] and (scaled[-1] * 4 / plain[-1]).item() == pytest.approx(1, rel=1e-13)


@torch.no_grad()
@pytest.mark.parametrize(
    "scaling",
    [
        DynamicNTKRopeScalingConfig(4.0, 32),
        LongRopeScalingConfig((1.0, 1.2), (2.0, 8.0), 4.0, original_length=32),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_steps_past_the_original_length_are_the_whole_sequence(scaling: RopeScalingConfig) -> None:
    """The angles are those of max_seq_len from the first token on, so cached keys agree with later queries."""
    model = make(language_model(RotaryPositionConfig(100.0, scaling=scaling, max_seq_len=130)))
    x = tokens(2, 130)
    whole = model(x)
    for sizes in ([20, 40, 70], [31, 1, 1, 1, 96]):
        torch.testing.assert_close(in_segments(model, x, sizes), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        model(x[:, :20]), whole[:, :20], rtol=0, atol=1e-12
    )  # later tokens change nothing
    short = make(language_model(RotaryPositionConfig(100.0, scaling=scaling, max_seq_len=32)))
    assert not torch.allclose(short(x[:, :20]), whole[:, :20])
    with pytest.raises(ValueError, match=r"^the input has 130 tokens, more than max_seq_len 32"):
        short(x)


def test_up_to_the_original_length_dynamic_ntk_is_no_scaling() -> None:
    dynamic, plain = DynamicNTKRopeScalingConfig(4.0, 64), NoRopeScalingConfig()
    for length in (1, 64):
        assert torch.equal(dynamic.frequencies(16, 1e4, length)[0], plain.frequencies(16, 1e4, length)[0])
    assert not torch.equal(dynamic.frequencies(16, 1e4, 65)[0], plain.frequencies(16, 1e4, 65)[0])


def test_the_attention_factor_multiplies_queries_and_keys() -> None:
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    scaling = YaRNRopeScalingConfig(4.0, 64)
    position = RotaryPositionConfig(scaling=scaling).build(16)
    from transformer.base.sockets import Layout

    turned = position.rotate(x, x, Layout(torch.arange(5)[None]))
    for part in turned:
        torch.testing.assert_close(part.norm(dim=-1), x.norm(dim=-1) * (0.1 * math.log(4) + 1))


def refused(message: str) -> Any:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_wrong_settings_are_refused() -> None:
    with refused(
        "dynamic_ntk_rope_scaling depends on the length that the model is built for; "
        "give rotary position a max_seq_len"
    ):
        rope(scaling=DynamicNTKRopeScalingConfig())
    with pytest.raises(ValueError, match=r"^longrope_scaling depends on the length"):
        RotaryPositionConfig(scaling=LONGROPE)
    with refused("short_factors has 1 numbers and long_factors 2; give each one number per rotary pair"):
        LongRopeScalingConfig((1.0,), (1.0, 2.0))
    with refused(
        "longrope_scaling has factors for 8 pairs, but 4 dimensions are turned; give 2 factors in each list"
    ):
        LONGROPE.frequencies(4, 1e4, 10)
    with refused(
        "NTK scaling changes the base, which a rotary width of 2 does not have; "
        "use a width of 4 or more, or linear scaling"
    ):
        NTKRopeScalingConfig().frequencies(2, 1e4, None)
    with refused("beta_fast 1 must be more than beta_slow 1; the paper has 32 and 1"):
        YaRNRopeScalingConfig(beta_fast=1.0)
    with refused("high_frequency_factor 1 must be more than low_frequency_factor 1; Llama 3.1 has 4 and 1"):
        Llama3RopeScalingConfig(high_frequency_factor=1.0)


def test_rope_takes_a_scaling() -> None:
    scaling = YaRNRopeScalingConfig(8.0)
    config = enhance(
        gpt(100, 16, 2, 2), rope(5.0, scaling, layout="interleaved", fraction=0.5, max_seq_len=9)
    )
    assert config.stack.position == RotaryPositionConfig(5.0, "interleaved", 0.5, scaling, 9)
