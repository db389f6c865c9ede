"""A small config of any family: each is given those sizes that it has."""

from __future__ import annotations

import inspect
from typing import Any

from transformer.models import FAMILIES, ModelConfig


def family_config(family: str, **sizes: Any) -> ModelConfig:
    """The family's config with these sizes, but for those that it does not know; heads of Mamba-2 are 8 wide."""
    function = FAMILIES[family]
    known = inspect.signature(function).parameters
    return function(**{name: size for name, size in {"d_head": 8, **sizes}.items() if name in known})
