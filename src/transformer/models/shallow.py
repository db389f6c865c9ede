"""A model of some of the blocks of another: pruning by layers, and leaving a stack early.

    only_blocks(model, range(n))          the first n blocks, then the norm and the map to logits: an early exit
    only_blocks(model, [0, 2, 4])         every other block (LayerDrop, arXiv 1909.11556 §3.3)

Nothing is copied: the two models share their weights. The first blocks of a model can write a draft that the whole of
it then checks (self-speculative decoding, arXiv 2404.16710 §4.3).
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from typing import TypeVar

from torch import nn

from .decoder import DecoderOnly
from .encoder_only import EncoderOnly

M = TypeVar("M", DecoderOnly, EncoderOnly)


def only_blocks(model: M, numbers: Iterable[int]) -> M:
    """Return a model of the blocks with these numbers, from 0, in ascending order; it shares the weights of `model`.

    ValueError for a number that no block has, and for none at all.
    """
    chosen, n_blocks = sorted(set(numbers)), len(model.stack.blocks)
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < n_blocks:
        given = ", ".join(map(str, chosen)) or "none"
        raise ValueError(f"the blocks of this model are 0 to {n_blocks - 1}; got {given}")
    stack, shallow = _own_children(model.stack), _own_children(model)
    stack.blocks = nn.ModuleList(model.stack.blocks[number] for number in chosen)
    shallow.stack = stack
    blocks = tuple(model.config.stack.blocks[number] for number in chosen)
    shallow.config = replace(model.config, stack=replace(model.config.stack, blocks=blocks))
    return shallow


N = TypeVar("N", bound=nn.Module)


def _own_children(module: N) -> N:
    """A copy of the module that has the same children but keeps its own list of them."""
    twin = copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin
