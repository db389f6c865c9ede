"""No biases in linear maps (PaLM: Chowdhery et al. 2022, arXiv 2204.02311 §2; LLaMA: arXiv 2302.13971)."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from ..base.sockets import Config, Enhancement

C = TypeVar("C", bound=Config)


def no_bias() -> Enhancement:
    """Leave out the bias of every linear map: y = x W instead of y = x W + b.

    Sets `bias` to False in every part that has it as a switch. The shift of LayerNorm is no bias of a linear map and
    stays; RMSNorm has none. A map loses
    one parameter per output.
    """

    def apply(config: C) -> C:
        return cast(C, _without(config))

    return apply


def _without(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_without(item) for item in value)
    if not isinstance(value, Config):
        return value
    changed = {field.name: _without(getattr(value, field.name)) for field in fields(value)}
    if isinstance(changed.get("bias"), bool):
        changed["bias"] = False
    return replace(value, **changed)
