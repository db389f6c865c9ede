"""The scans that linear attentions are made of: their forms against each other and against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.enhancements.attention import linear_references as references
from tests.enhancements.attention.linear_references import array
from transformer.base.sockets import Layout
from transformer.enhancements.attention.delta_net import chunked_delta_scan, delta_scan, recurrent_delta_scan
from transformer.enhancements.attention.recurrence import (
    RecurrentState,
    Segments,
    chunked_scan,
    recurrent_scan,
    scan,
)

pytestmark = pytest.mark.shapes_unchecked

BATCH, HEADS, KEY, VALUE = 2, 3, 6, 5
EVERY_LENGTH = (1, 7, 64, 127, 257)
RULES = ("none", "scalar", "vector", "delta", "gated delta")
each_rule = pytest.mark.parametrize("rule", RULES)


def inputs(rule: str, length: int, strength: float = 0.3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v, log_decay and, for a delta rule, beta: all with gradients."""
    shape = (BATCH, HEADS, length)
    q, k, v = (torch.randn(*shape, width, dtype=torch.float64) for width in (KEY, KEY, VALUE))
    width = KEY if rule == "vector" else 1
    decay = -strength * torch.rand(*shape, width, dtype=torch.float64)
    if rule in ("none", "delta"):
        decay = torch.zeros(1, 1, length, 1, dtype=torch.float64)
    tensors = [q, k, v, decay]
    if "delta" in rule:
        tensors[1] = F.normalize(k, dim=-1)
        tensors.append(torch.rand(*shape, 1, dtype=torch.float64))
    return [x.to(dtype).requires_grad_() for x in tensors]


def forms(rule: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The recurrent form, the chunked one, and the scan that chooses between them."""
    if "delta" in rule:
        return recurrent_delta_scan, chunked_delta_scan, delta_scan
    return recurrent_scan, chunked_scan, scan


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(BATCH, HEADS, KEY, VALUE, dtype=dtype).requires_grad_()


def slopes(out: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The value of a scan with the state it leaves, and their gradients along fixed random directions."""
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in out)
    return [*out, *torch.autograd.grad(total, leaves)]


def agree(first: list[Tensor], second: list[Tensor], tolerance: float) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all() and b.isfinite().all()
        assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


def documents(length: int) -> Tensor:
    """Documents of many lengths, other ones in each row."""
    return torch.rand(BATCH, length).lt(0.06).cumsum(1)


# ---------------------------------------------------------------- the definition


@each_rule
def test_the_recurrent_form_is_the_definition_in_value_and_gradient(rule: str) -> None:
    tensors, state = inputs(rule, 65), start()
    out, last = forms(rule)[0](*tensors, runs=None, initial=state)
    dy = torch.randn_like(out)
    gradients = torch.autograd.grad(out, [*tensors, state], dy)
    define = references.delta if "delta" in rule else references.decayed
    d_decay = np.zeros(tensors[3].shape[2:])
    for b in range(BATCH):
        for h in range(HEADS):
            rows = [array(x[b, h] if len(x) > 1 else x[0, 0]) for x in tensors]
            value, backward = define(*rows, array(state[b, h]))
            assert np.abs(array(out[b, h]) - value).max() <= 1e-12
            expected = list(backward(array(dy[b, h])))
            if len(tensors[3]) == 1:  # one decay for all: its gradients add up
                d_decay += expected.pop(3)
                ours = [g[b, h] for i, g in enumerate(gradients) if i != 3]
            else:
                ours = [g[b, h] for g in gradients]
            for a, e in zip(ours, expected, strict=True):
                assert np.abs(array(a) - e).max() <= 1e-10 * max(1.0, np.abs(e).max())
    if len(tensors[3]) == 1:
        assert np.abs(array(gradients[3][0, 0]) - d_decay).max() <= 1e-10 * np.abs(d_decay).max()
    assert last.shape == state.shape


# ---------------------------------------------------------------- one form and another


@each_rule
@pytest.mark.parametrize("length", EVERY_LENGTH)
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
def test_chunks_of_any_size_are_the_recurrence(rule: str, length: int, packed: bool) -> None:
    """In value, in the state they leave, and in every gradient; one chunk for all (512) is the parallel form."""
    recurrent, chunked, _ = forms(rule)
    tensors, state = inputs(rule, length), start()
    runs = documents(length) if packed else None
    expected = slopes(recurrent(*tensors, runs=runs, initial=state), [*tensors, state])
    for size in (1, 2, 16, 64, 512):
        found = chunked(*tensors, runs=runs, initial=state, size=size)
        agree(slopes(found, [*tensors, state]), expected, 1e-11)


@each_rule
@pytest.mark.parametrize("length", EVERY_LENGTH)
def test_calls_of_any_length_are_one_call(rule: str, length: int) -> None:
    """A state handed from call to call carries values and gradients."""
    recurrent, _, chosen = forms(rule)
    tensors = inputs(rule, length)
    empty = torch.zeros(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    expected = slopes(recurrent(*tensors, runs=None, initial=empty), tensors)
    cuts = np.random.default_rng(length)
    for _ in range(4):
        sizes, state = [], RecurrentState()
        while sum(sizes) < length:
            sizes.append(int(min(length - sum(sizes), cuts.choice([1, 2, 5, 64, 100]))))
        calls = zip(*(x.split(sizes, dim=2) for x in tensors), strict=True)
        parts = [chosen(*pieces, Segments(None, None), state) for pieces in calls]
        found = (torch.cat(parts, dim=2), state.tensors["matrix"])
        agree(slopes(found, tensors), expected, 1e-11)


@each_rule
def test_forms_agree_in_single_precision(rule: str) -> None:
    recurrent, chunked, _ = forms(rule)
    torch.manual_seed(2)
    tensors, state = inputs(rule, 257, dtype=torch.float32), start(torch.float32)
    wide = [x.detach().double().requires_grad_() for x in (*tensors, state)]
    exact = recurrent(*wide[:-1], runs=None, initial=wide[-1])
    found = chunked(*tensors, runs=None, initial=state)
    agree([x.double() for x in found], list(exact), 2e-5)


# ---------------------------------------------------------------- decay


@pytest.mark.parametrize("rule", ["scalar", "vector", "gated delta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("decay", [-20.0, -200.0, -1e30])
def test_strong_decay_neither_overflows_nor_loses_anything(
    rule: str, dtype: torch.dtype, decay: float
) -> None:
    """A log-decay of −20 a step sums to −4000 over 200 of them, of which no power may be taken by itself."""
    recurrent, chunked, _ = forms(rule)
    tensors = inputs(rule, 200, dtype=dtype)
    gate = torch.full_like(tensors[3], decay)
    gate[:, :, ::7] = -0.01  # some tokens are kept, so that something is left to compare
    gate[:, :, 1::7] = 0.0
    tensors[3] = gate.requires_grad_()
    state = start(dtype)
    expected = slopes(recurrent(*tensors, runs=None, initial=state), [*tensors, state])
    found = slopes(chunked(*tensors, runs=None, initial=state), [*tensors, state])
    agree(found, expected, 1e-11 if dtype == torch.float64 else 2e-5)


def test_a_long_sum_of_decays_costs_no_precision() -> None:
    """Far into a chunk of strong decay two neighbours are as close as at its beginning: no sums are subtracted."""
    q, k, v = (torch.ones(1, 1, 64, 1) for _ in range(3))
    for width in (1, 2):
        decay = torch.full((1, 1, 64, width), -1000.0)
        decay[:, :, -1] = -0.001
        wide = [x.expand(-1, -1, -1, width) for x in (q, k)]
        out, _ = chunked_scan(*wide, v, decay, None, torch.zeros(1, 1, width, 1))
        expected = width * (1 + np.exp(-0.001))
        assert abs(out[0, 0, -1, 0].item() - expected) <= 3e-7 * width


# ---------------------------------------------------------------- padding and documents


@each_rule
def test_padding_writes_nothing_and_decays_nothing(rule: str) -> None:
    """Wherever it stands, whatever it holds: the outputs, gradients and last state of the real tokens alone."""
    chosen = forms(rule)[2]
    real = torch.rand(BATCH, 150) < 0.6
    tensors = inputs(rule, 150)
    tensors = [x.detach().expand(BATCH, -1, -1, -1).clone().requires_grad_() for x in tensors]
    state = RecurrentState()
    found = slopes((chosen(*tensors, Segments(real, None), state), state.tensors["matrix"]), tensors)
    for b in range(BATCH):
        kept = [x[b : b + 1, :, real[b]].detach().requires_grad_() for x in tensors]
        alone = RecurrentState()
        expected = chosen(*kept, Segments(None, None), alone)
        agree([found[0][b : b + 1, :, real[b]]], [expected], 1e-12)
        agree([found[1][b : b + 1]], [alone.tensors["matrix"]], 1e-12)
    for gradient in found[3:]:  # of the keys, values, decays and betas
        assert (gradient.masked_select(~real[:, None, :, None]) == 0).all()


@each_rule
def test_documents_do_not_see_each_other_at_all(rule: str) -> None:
    """The gradient of one document by another is exactly 0, in chunks and across their boundaries."""
    tensors = inputs(rule, 200)
    runs = torch.arange(200).ge(90).long() + torch.arange(200).ge(130)
    out, state = forms(rule)[1](*tensors, runs=runs.expand(BATCH, -1), initial=start())
    for number in range(3):
        here = runs == number
        for gradient in torch.autograd.grad(out[:, :, here].sum(), tensors, retain_graph=True):
            assert (gradient[:, :, ~here] == 0).all()
    for gradient in torch.autograd.grad(state.sum(), tensors[1:4]):
        assert (gradient[:, :, runs != 2] == 0).all()


def test_segments_follow_the_real_tokens() -> None:
    """Padding belongs to the document before it, and a state remembers the document of the last real token."""
    labels = torch.tensor([[5, 9, 5, 5, 7, 9, 7], [0, 5, 5, 5, 5, 1, 1]])
    real = torch.tensor([[1, 0, 1, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1, 0]]).bool()
    layout = Layout(torch.arange(7)[None], real, labels)
    state = RecurrentState()
    assert Segments.of(layout, 2, state).runs.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]
    assert state.tensors["document"].tolist() == [[7], [1]]
    after = Segments.of(Layout(torch.arange(2)[None], None, torch.tensor([[7, 8]])), 2, state)
    assert after.runs.tolist() == [[0, 1], [1, 2]]
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    Segments.of(Layout(torch.arange(2)[None], nothing, torch.tensor([[3, 4]])), 2, state)
    assert state.tensors["document"].tolist() == [[8], [8]]
    assert Segments.of(Layout(torch.arange(3)[None]), 2).runs is None


@each_rule
def test_scans_run_in_single_precision_under_autocast(rule: str) -> None:
    """The result under bfloat16 autocast is that of float32, to the bit."""
    tensors = inputs(rule, 70, dtype=torch.float32)
    expected = forms(rule)[2](*tensors, Segments(None, None))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(forms(rule)[2](*tensors, Segments(None, None)), expected)
    state = RecurrentState()
    coarse = forms(rule)[2](*(x.bfloat16() for x in tensors), Segments(None, None), state)
    assert coarse.dtype == torch.bfloat16 and state.tensors["matrix"].dtype == torch.float32
