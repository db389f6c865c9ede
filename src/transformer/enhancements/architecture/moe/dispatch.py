"""How tokens are brought to their experts and back: y_t = Σ_{i chosen by t} g_i E_i(x_t), computed in two ways.

`loop_dispatch` takes one expert after the other and is the definition. `grouped_dispatch` sorts the choices by expert,
so that each expert's tokens stand together, and maps all of them in one product (`grouped_product.py`); it compiles
whole. Both add up a token's experts in the order of their numbers, and give the same value and gradients; which of
them runs is a choice of execution and no part of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from .experts import Experts
from .grouped_product import grouped_product
from .routing import Routing


@dataclass(frozen=True)
class Slots:
    """Pairs of a token and an expert: their numbers, the gate, and whether the pair counts at all."""

    tokens: Int[Tensor, " _"]
    experts: Int[Tensor, " _"]
    gates: Float[Tensor, " _"]
    kept: Bool[Tensor, " _"]

    @classmethod
    def of(cls, routing: Routing) -> Slots:
        """Every choice of every token, token by token."""
        index = torch.arange(routing.real.numel(), device=routing.real.device)
        tokens = index.repeat_interleave(routing.experts.shape[-1])
        return cls(tokens, routing.experts.flatten(), routing.gates.flatten(), routing.kept.flatten())


Dispatch = Callable[[Experts, Tensor, Slots], Tensor]


def loop_dispatch(experts: Experts, x: Float[Tensor, "b t d"], slots: Slots) -> Float[Tensor, "b t d"]:
    """Expert by expert: its tokens, its output, times the gates, back to where they came from."""
    flat = rearrange(x, "b t d -> (b t) d")
    out = torch.zeros_like(flat)
    for number in range(experts.n_experts):
        here = (slots.kept & (slots.experts == number)).nonzero().squeeze(1)
        tokens, gates = slots.tokens[here], slots.gates[here]
        made = experts(flat[tokens], partial(_one, number=number))
        out = out.index_add(0, tokens, (made * gates[:, None].to(made.dtype)).to(out.dtype))
    return out.view_as(x)


def grouped_dispatch(experts: Experts, x: Float[Tensor, "b t d"], slots: Slots) -> Float[Tensor, "b t d"]:
    """All choices at once, sorted by expert; those that do not count come last and go through none."""
    nobody = experts.n_experts
    group, order = slots.experts.masked_fill(~slots.kept, nobody).sort(stable=True)
    counts = torch.zeros(nobody + 1, dtype=torch.long, device=x.device)
    counts = counts.scatter_add(0, group, torch.ones_like(group))[:nobody]
    flat, tokens = rearrange(x, "b t d -> (b t) d"), slots.tokens[order]
    made = experts(flat.index_select(0, tokens), partial(_grouped, counts=counts, group=group))
    made = made * slots.gates[order, None].to(made.dtype)
    return torch.zeros_like(flat).index_add(0, tokens, made.to(flat.dtype)).view_as(x)


def equal_groups(x: Tensor, weight: Tensor, bias: Tensor | None) -> Float[Tensor, "... _"]:
    """The product for `Float[x _ d]`: each expert has as many rows as any other, and they stand apart already."""
    y = torch.einsum("xnd,xfd->xnf", x, weight)
    return y if bias is None else y + bias[:, None]


def _one(x: Tensor, weight: Tensor, bias: Tensor | None, number: int) -> Float[Tensor, "_ _"]:
    return F.linear(x, weight[number], None if bias is None else bias[number])


def _grouped(
    x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor, group: Tensor
) -> Float[Tensor, "_ _"]:
    if torch.is_autocast_enabled(x.device.type):
        x, weight = (one.to(torch.get_autocast_dtype(x.device.type)) for one in (x, weight))
    y = grouped_product(x, weight, counts)
    if bias is None:
        return y  # type: ignore[no-any-return]
    return y + F.pad(bias, (0, 0, 0, 1))[group].to(y.dtype)  # type: ignore[no-any-return]


DISPATCHES: Mapping[str, Dispatch] = MappingProxyType({"loop": loop_dispatch, "grouped": grouped_dispatch})
"""Every way, by the name that a config file calls it."""
