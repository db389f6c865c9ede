"""Rotary position in `config.json`: the older dialect (`rope_theta`, `rope_scaling`), the newer (`rope_parameters`)."""

from __future__ import annotations

from typing import Any, Literal

from ...enhancements.position.rope import RotaryPositionConfig
from ...enhancements.position.rope_scaling import (
    LinearRopeScalingConfig,
    Llama3RopeScalingConfig,
    NoRopeScalingConfig,
    RopeScalingConfig,
)
from ...enhancements.position.yarn import YaRNRopeScalingConfig
from .attributes import Attributes

RopeLayout = Literal["half", "interleaved"]


def read_rope(
    attributes: Attributes,
    max_seq_len: int | None,
    base: float = 10000.0,
    fraction: float = 1.0,
    layout: RopeLayout = "half",
) -> RotaryPositionConfig:
    """Return the rotary position that the attributes describe; a rule that is not known is refused by name."""
    older = attributes.section("rope_scaling")
    newer = attributes.section("rope_parameters")
    if older is not None and newer is not None:
        raise attributes.fault("has both rope_scaling and rope_parameters; one of them must go")
    base = attributes.take("rope_theta", float, base)
    return rope_of(newer or older, max_seq_len, base, fraction, layout)


def rope_of(
    section: Attributes | None,
    max_seq_len: int | None,
    base: float,
    fraction: float = 1.0,
    layout: RopeLayout = "half",
) -> RotaryPositionConfig:
    """Return the rotary position that a table of its own describes, if there is one."""
    if section is None:
        return RotaryPositionConfig(base, layout, fraction, max_seq_len=max_seq_len)
    base = section.take("rope_theta", float, base)
    fraction = section.take("partial_rotary_factor", float, fraction)
    named = section.take("type", str, "default")
    scaling = _scaling(section, section.take("rope_type", str, named))
    section.finish()
    return RotaryPositionConfig(base, layout, fraction, scaling, max_seq_len)


def _scaling(section: Attributes, kind: str) -> RopeScalingConfig:
    if kind == "default":
        return NoRopeScalingConfig()
    if kind == "linear":
        return LinearRopeScalingConfig(section.take("factor", float))
    if kind == "llama3":
        return Llama3RopeScalingConfig(
            section.take("factor", float),
            low_frequency_factor=section.take("low_freq_factor", float),
            high_frequency_factor=section.take("high_freq_factor", float),
            original_length=section.take("original_max_position_embeddings", int),
        )
    if kind == "yarn":
        return YaRNRopeScalingConfig(
            section.take("factor", float),
            section.take("original_max_position_embeddings", int),
            section.take("beta_fast", float, 32.0),
            section.take("beta_slow", float, 1.0),
            "rounded" if section.take("truncate", bool, True) else "exact",
            section.take("attention_factor", float, None),
        )
    raise section.fault(f"has rope_type {kind!r}, and only default, linear, llama3 or yarn can be loaded")


def write_rope(position: RotaryPositionConfig) -> dict[str, Any]:
    """Return the `rope_parameters` of a rotary position."""
    found: dict[str, Any] = {"rope_theta": position.base, "rope_type": "default"}
    scaling = position.scaling
    if position.fraction != 1:
        found["partial_rotary_factor"] = position.fraction
    if isinstance(scaling, LinearRopeScalingConfig):
        found |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3RopeScalingConfig):
        found |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    elif isinstance(scaling, YaRNRopeScalingConfig):
        found |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.ramp == "rounded",
            "original_max_position_embeddings": scaling.original_length,
        }
        if scaling.attention_factor is not None:
            found["attention_factor"] = scaling.attention_factor
    elif not isinstance(scaling, NoRopeScalingConfig):
        raise ValueError(f"rotary position with {scaling.kind} cannot be written yet")
    return found
