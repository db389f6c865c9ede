"""Every kernel is the same function: kernel × mask × bias × heads × window × cap × sinks × length × width × precision.

All pairs of values, and all triples of those in `TRIPLES`, are tried for each kernel; the whole product by -m slow.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.enhancements.test_kernels import BATCH, KINDS, GivenBias, case
from transformer.base.sockets import Kernel, Pairs, Scoring
from transformer.enhancements import (
    chunked_attention,
    flash_attention,
    flex_attention,
    naive_attention,
    sdpa_attention,
)

pytestmark = pytest.mark.shapes_unchecked

KERNELS: dict[str, Kernel] = {
    "flash": flash_attention,
    "flash-small-tiles": partial(flash_attention, rows=48, columns=24),
    "chunked": chunked_attention,
    "chunked-long-chunks": partial(chunked_attention, rows=48, columns=80),
    "sdpa": sdpa_attention,
}
FACTORS: dict[str, tuple[Any, ...]] = {
    "kind": KINDS,
    "length": (1, 7, 64, 127, 257),
    "window": (None, 40),
    "heads": ((12, 12), (12, 4), (12, 1)),
    "biased": (False, True),
    "soft_cap": (None, 1.5),
    "sinks": (False, True),
    "width": (8, 5),
    "dtype": (torch.float64, torch.float32, torch.bfloat16),
}
TRIPLES = (("kind", "length", "window"), ("kind", "window", "sinks"), ("kind", "heads", "biased"))


@dataclass(frozen=True)
class Cell:
    """One cell of the grid. width: of a value; keys are 8 wide."""

    kind: str
    length: int
    window: int | None
    heads: tuple[int, int]
    biased: bool
    soft_cap: float | None
    sinks: bool
    width: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return "-".join(str(getattr(self, name)).replace("torch.", "") for name in FACTORS)


def covering(factors: dict[str, tuple[Any, ...]], groups: tuple[tuple[str, ...], ...]) -> list[Cell]:
    """Few cells that hold every combination of values of each group of factors, chosen greedily."""
    rng = random.Random(0)
    open_ = {
        (group, values) for group in groups for values in itertools.product(*(factors[n] for n in group))
    }
    cells = []
    for wanted in sorted(open_, key=repr):
        if wanted not in open_:
            continue
        best: tuple[int, Cell, set] | None = None
        for _ in range(12):
            drawn = {name: rng.choice(values) for name, values in factors.items()}
            drawn.update(zip(*wanted, strict=True))
            met = {(group, tuple(drawn[n] for n in group)) for group in groups} & open_
            if best is None or len(met) > best[0]:
                best = len(met), Cell(**drawn), met
        assert best is not None
        cells.append(best[1])
        open_ -= best[2]
    return cells


CELLS = covering(FACTORS, (*itertools.combinations(FACTORS, 2), *TRIPLES))


def inputs_of(cell: Cell) -> tuple[Pairs, list[Tensor], Scoring]:
    """Queries, keys, values, the output's gradient, and the bias and the sinks if there are any, in float64."""
    generator = torch.Generator().manual_seed(17)
    given = case(cell.kind, cell.length)
    mask = given.mask if cell.window is None else replace(given.mask, window=cell.window)
    t, s, (h, k) = given.queries.positions.shape[1], cell.length, cell.heads
    shapes = [(BATCH, h, t, 8), (BATCH, k, s, 8), (BATCH, k, s, cell.width), (BATCH, h, t, cell.width)]
    shapes += [(BATCH, h, t, s)] * cell.biased + [(h,)] * cell.sinks
    drawn = [torch.randn(shape, generator=generator).to(cell.dtype).double() for shape in shapes]
    bias = drawn[4] if cell.biased else None
    sinks = drawn[-1] if cell.sinks else None
    pairs = Pairs(given.queries, given.keys, mask, GivenBias(bias))
    return pairs, drawn, Scoring(0.3, soft_cap=cell.soft_cap, sinks=sinks)


def attend(kernel: Kernel, cell: Cell, dtype: torch.dtype, learn: bool = True) -> list[Tensor]:
    """The output and the gradients by queries, keys, values, bias and sinks."""
    pairs, drawn, scoring = inputs_of(cell)
    leaves = [x.to(dtype).requires_grad_(learn) for x in drawn]
    q, k, v, slope = leaves[:4]
    pairs = Pairs(pairs.queries, pairs.keys, pairs.mask, GivenBias(leaves[4] if cell.biased else None))
    out = kernel(q, k, v, pairs, replace(scoring, sinks=leaves[-1] if cell.sinks else None))
    if not learn:
        return [out]
    out.backward(slope.detach())
    return [out.detach(), *(x.grad for x in (q, k, v, *leaves[4:]) if x.grad is not None)]


@cache
def expected(cell: Cell, dtype: torch.dtype) -> list[Tensor]:
    return attend(naive_attention, cell, dtype)


def check(kernel: Kernel, cell: Cell, learn: bool = True) -> None:
    truths, naive = expected(cell, torch.float64), expected(cell, cell.dtype)
    results = attend(kernel, cell, cell.dtype, learn)
    assert len(results) == (4 + cell.biased + cell.sinks if learn else 1)
    for truth, reference, result in zip(truths, naive, results, strict=learn):
        assert result.dtype == cell.dtype and result.isfinite().all()
        error, own = ((x - truth).abs().max().item() for x in (result, reference))
        assert error <= tolerance(cell.dtype, own, truth.abs().max().item())


def tolerance(dtype: torch.dtype, own: float, largest: float) -> float:
    """What a kernel may be off by, given the definition's own error and the largest entry of the truth.

    Half precisions: twice the definition's error, one rounding of the largest entry, and float32's rounding of terms
    that cancel: where the only key has all the weight the gradient is 0. float32: a gradient that 12 heads share adds
    up hundreds of terms, and is judged by its size.
    """
    if dtype in (torch.bfloat16, torch.float16):
        return 2 * own + torch.finfo(dtype).eps / 2 * largest + 1e-6
    return 1e-10 if dtype == torch.float64 else 2e-5 * max(1.0, largest)


def test_the_cells_hold_every_pair_and_the_triples() -> None:
    for group in (*itertools.combinations(FACTORS, 2), *TRIPLES):
        met = {tuple(getattr(cell, name) for name in group) for cell in CELLS}
        assert met == set(itertools.product(*(FACTORS[name] for name in group)))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_kernel_is_the_definition(kernel: Kernel, cell: Cell) -> None:
    check(kernel, cell)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", FACTORS["length"])
def test_a_kernel_is_the_definition_everywhere(kernel: Kernel, kind: str, length: int) -> None:
    for values in itertools.product(*(FACTORS[name] for name in list(FACTORS)[2:])):
        check(kernel, Cell(kind, length, *values))
        expected.cache_clear()


@pytest.mark.parametrize("cell", CELLS[::6], ids=str)
def test_flex_attention_is_the_definition(cell: Cell) -> None:
    """Its forward pass; on a CPU there is no other."""
    check(flex_attention, cell, learn=False)


# ---------------------------------------------------------------- the definition itself, in NumPy


@cache
def by_hand(cell: Cell) -> list[np.ndarray]:
    """Output and gradients, entry by entry of the definition, the mask from its words."""
    pairs, drawn, scoring = inputs_of(cell)
    q, k, v, slope = (x.numpy() for x in drawn[:4])
    h, shared = cell.heads
    group = h // shared
    seen = np.array(visible_by_words(pairs))[:, None]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)  # head i has key head ⌊i·k/h⌋
    products = q @ k.swapaxes(2, 3) * scoring.scale
    capped = products if cell.soft_cap is None else cell.soft_cap * np.tanh(products / cell.soft_cap)
    scores = capped + (drawn[4].numpy() if cell.biased else 0)
    parts = np.where(seen, np.exp(scores), 0)  # scores are small here: no maximum needs to be taken off
    sink = np.exp(drawn[-1].numpy())[None, :, None, None] if cell.sinks else 0
    total = parts.sum(-1, keepdims=True) + sink
    weights = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
    out = weights @ v
    d_weights = slope @ v.swapaxes(2, 3)
    mean = (weights * d_weights).sum(-1, keepdims=True)
    d_scores = weights * (d_weights - mean)
    d_products = d_scores if cell.soft_cap is None else d_scores * (1 - (capped / cell.soft_cap) ** 2)
    d_q = d_products @ k * scoring.scale
    d_k, d_v = d_products.swapaxes(2, 3) @ q * scoring.scale, weights.swapaxes(2, 3) @ slope
    d_k, d_v = (x.reshape(len(x), shared, group, *x.shape[2:]).sum(2) for x in (d_k, d_v))
    by_sinks = [-(sink / total * mean).sum((0, 2, 3))] if cell.sinks else []
    return [out, d_q, d_k, d_v, *([d_scores] if cell.biased else []), *by_sinks]


def visible_by_words(pairs: Pairs) -> list[list[list[bool]]]:
    """Who sees whom, one pair at a time."""
    mask = pairs.mask

    def plain(x: Tensor | None, like: Tensor, otherwise: int) -> list[list[int]]:
        filled = torch.full_like(like, otherwise) if x is None else x
        return filled.expand(BATCH, -1).tolist()

    at, of = (plain(layout.positions, layout.positions, 0) for layout in (pairs.queries, pairs.keys))
    real = plain(pairs.keys.real, pairs.keys.positions, 1)
    mine, theirs = (plain(x.documents, x.positions, 0) for x in (pairs.queries, pairs.keys))

    def sees(row: int, i: int, j: int) -> bool:
        distance = at[row][i] - of[row][j]
        return (
            not (mask.causal and distance < 0)
            and not (mask.window is not None and abs(distance) >= mask.window)
            and bool(real[row][j])
            and mine[row][i] == theirs[row][j]
        )

    return [[[sees(b, i, j) for j in range(len(of[b]))] for i in range(len(at[b]))] for b in range(BATCH)]


HAND = [
    Cell("left", 64, 40, (12, 4), True, 1.5, True, 5, torch.float64),
    Cell("packed", 65, None, (12, 1), False, None, True, 8, torch.float64),
    Cell("cached", 70, 40, (12, 12), True, None, False, 8, torch.float64),
    Cell("empty", 66, None, (12, 4), True, 1.5, False, 5, torch.float64),
]
EVERY: dict[str, Callable[..., Tensor]] = {"naive": naive_attention, **KERNELS}


@pytest.mark.parametrize("kernel", EVERY.values(), ids=list(EVERY))
@pytest.mark.parametrize("cell", HAND, ids=str)
def test_values_and_gradients_by_hand(kernel: Kernel, cell: Cell) -> None:
    for result, truth in zip(attend(kernel, cell, torch.float64), by_hand(cell), strict=True):
        np.testing.assert_allclose(result.numpy(), truth, rtol=0, atol=1e-10)
    for result, truth in zip(attend(kernel, cell, torch.float32), by_hand(cell), strict=True):
        # these inputs are not rounded to float32 first, unlike the grid's
        np.testing.assert_allclose(result.numpy(), truth, rtol=0, atol=2e-5)
