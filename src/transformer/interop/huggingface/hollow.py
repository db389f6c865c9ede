"""A model before its weights: it has every part and every shape, and no memory is spent on a weight.

Weights come afterwards, one at a time, each straight into the memory where it stays (`weights.read_weights`), so that
loading needs little more than the model. What a file says of itself is compared with its size before anything is built:
no layer is believed that has no tensor, and no size that the weights could not fill.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ...models import Model, ModelConfig, build

TABLES = 2**26
"""Bytes of tables (of positions, say) that a small file may ask for without bringing them."""


def build_hollow(config: ModelConfig, dtype: torch.dtype, size: int) -> Model:
    """Build a model whose weights are on the device `meta`; tables that it computes are real.

    size: of the weight files, in bytes. ValueError for a config that needs more numbers, or more of tables.
    """
    with torch.device("meta"):
        skeleton = build(config)
    weights = sum(parameter.numel() for parameter in skeleton.parameters())
    tables = sum(buffer.nbytes for buffer in skeleton.buffers())
    if weights > size or tables > size + TABLES:
        raise ValueError(
            f"it would have {weights:,} weights and {tables:,} bytes of tables, and the weight files have "
            f"{size:,} bytes"
        )
    thread = threading.get_ident()

    def hollow(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(hollow)  # type: ignore[arg-type]
    try:
        # tables may be drawn, and overwritten afterwards: the caller's dice stay
        with torch.random.fork_rng(devices=[]), _EmptyIsHollow():
            model = build(config).to(dtype)
    finally:
        hook.remove()
    assert not any(buffer.is_meta for buffer in model.buffers()), "a table is made by torch.empty"
    return model


class _EmptyIsHollow(TorchFunctionMode):
    """Inside, `torch.empty`, by which modules ask for memory for weights, gives them none."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if function is torch.empty:
            options = {**options, "device": "meta"}
        return function(*args, **options)


def fill(model: nn.Module, made: dict[int, nn.Parameter]) -> None:
    """Put weights in the place of hollow ones, by their identity: tied ones stay one."""
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(old) in made:
                setattr(module, name, made[id(old)])
