"""Which norms an enhancement replaces: those of the residual stream, whatever they are."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from ...base.normalization import NoNormConfig
from ...base.sockets import Config, FeedForwardConfig, MixerConfig, NormConfig

C = TypeVar("C", bound=Config)


def replace_norms(config: C, norm: NormConfig) -> C:
    """Return `config` with `norm` for every norm around its sub-layers and at the end of its stacks.

    Where there is no norm there is none after; a norm that holds another keeps its form and gets `norm` inside. What
    mixers and feed-forward networks normalize within themselves, such as queries and keys, stays as it is.
    """
    return cast(C, _replace(config, norm))


def _replace(value: Any, norm: NormConfig) -> Any:
    if isinstance(value, tuple):
        return tuple(_replace(item, norm) for item in value)
    if not isinstance(value, Config) or isinstance(value, MixerConfig | FeedForwardConfig | NoNormConfig):
        return value
    parts = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, NormConfig) and not any(isinstance(part, NormConfig) for part in parts.values()):
        return norm
    return replace(value, **{name: _replace(part, norm) for name, part in parts.items()})
