"""The forms of the recurrence: against NumPy and each other, in pieces, with padding, documents, strong decays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.enhancements.attention.linear_references import array, context_of
from tests.enhancements.ssm import definitions
from tests.enhancements.ssm.cases import BATCH, SHAPES, agree, documents, inputs, slopes
from transformer.base.sockets import Layout
from transformer.enhancements.attention.recurrence import RecurrentState, Segments
from transformer.enhancements.ssm.dual import dual_scan
from transformer.enhancements.ssm.forms import SCANS, best_scan, chunked_scan, run_scan
from transformer.enhancements.ssm.invariant import fft_scan, toeplitz_scan
from transformer.enhancements.ssm.scan import Scan, associative_scan, sequential_scan
from transformer.enhancements.ssm.selective import selective_scan

pytestmark = pytest.mark.shapes_unchecked

CHUNKED: dict[str, Callable[..., Any]] = {
    "mamba": selective_scan, "mamba2": dual_scan, "s4d": toeplitz_scan
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", SHAPES)


def value(
    form: Scan | Callable[..., Any], tensors: list[Tensor], runs: Tensor | None
) -> tuple[Tensor, Tensor]:
    *given, initial = tensors
    return form(*given, runs, initial)


# ---------------------------------------------------------------- the definition


@each_kind
def test_the_sequential_form_is_the_definition_in_value_and_gradient(kind: str) -> None:
    tensors = inputs(kind, 65)
    out, last = value(sequential_scan, tensors, None)
    dy, d_last = torch.randn_like(out), torch.randn_like(last)
    gradients = torch.autograd.grad([out, last], tensors, [dy, d_last])
    x, dt, A, B, C, initial = tensors
    h, k = x.shape[2], B.shape[2]
    wide = [y.expand(BATCH, 65, -1, -1).repeat_interleave(h // k, 2).detach().numpy() for y in (B, C)]
    decays = np.broadcast_to(A.detach().numpy(), (h, B.shape[3]))
    steps = dt.expand(BATCH, 65, h).detach().numpy()
    summed = [0, 0, 0, 0, 0, 0]
    rows = []
    for b in range(BATCH):
        expected, backward = definitions.recurrence(
            array(x[b]), steps[b], decays, wide[0][b], wide[1][b], initial[b].detach().numpy()
        )
        assert np.abs(array(out[b]) - expected).max() <= 1e-12
        rows.append(backward(array(dy[b]), d_last[b].numpy()))
    summed = [np.stack([row[i] for row in rows]) for i in range(6)]
    summed[2] = summed[2].sum(0).sum(1, keepdims=True) if A.shape[1] == 1 else summed[2].sum(0)
    for i in (3, 4):
        grouped = summed[i].reshape(BATCH, 65, k, h // k, -1).sum(3)
        summed[i] = grouped.sum((0, 1), keepdims=True) if kind == "s4d" else grouped
    summed[1] = summed[1].sum(keepdims=True) if kind == "s4d" else summed[1]
    for ours, theirs in zip(gradients, summed, strict=True):
        assert np.abs(ours.numpy() - theirs).max() <= 1e-10 * max(1.0, np.abs(theirs).max())


# ---------------------------------------------------------------- one form and another


@each_kind
@pytest.mark.parametrize("length", [1, 2, 7, 64, 131])
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
def test_every_form_is_the_same_function(kind: str, length: int, packed: bool) -> None:
    """In value, in the state that it leaves, and in every gradient."""
    tensors, runs = inputs(kind, length), documents(length) if packed else None
    expected = slopes(*value(sequential_scan, tensors, runs), tensors)
    for form in (*SCANS.values(), best_scan):
        agree(slopes(*value(form, tensors, runs), tensors), expected, 1e-11)
    if kind == "s4d" and packed:
        return
    for size in (1, 2, 16, 256):
        agree(slopes(*value(partial(CHUNKED[kind], size=size), tensors, runs), tensors), expected, 1e-11)


@each_kind
def test_a_hundred_random_chunkings_are_the_whole(kind: str) -> None:
    """Calls of any lengths, each in any form and any size of chunk, that hand on the state: values and gradients."""
    rng = np.random.default_rng(len(kind))
    length, forms = 24, [sequential_scan, associative_scan, best_scan, *SCANS.values()]
    for _ in range(100):
        tensors = inputs(kind, length)
        runs = documents(length) if rng.random() < 0.4 else None
        *given, state = tensors
        expected = slopes(*value(sequential_scan, tensors, runs), tensors)
        outputs, at = [], 0
        while at < length:
            size = int(min(length - at, rng.choice([1, 1, 2, 3, 5, 8, 13])))
            here = slice(at, at + size)
            pieces = [y if y.ndim == 2 or y.shape[1] == 1 else y[:, here] for y in given]
            now = None if runs is None else runs[:, here] - (runs[:, at - 1 : at] if at else 0)
            form = forms[rng.integers(len(forms))]
            if rng.random() < 0.5 and (kind != "s4d" or runs is None):
                form = partial(CHUNKED[kind], size=int(rng.choice([1, 2, 4, 8])))
            out, state = form(*pieces, now, state)
            outputs.append(out)
            at += size
        agree(slopes(torch.cat(outputs, dim=1), state, tensors), expected, 1e-11)


def test_fourier_transforms_are_chosen_by_name_only() -> None:
    """They mix all tokens, so rounding reaches backwards in time: the form for training is causal to the bit."""
    tensors = inputs("s4d", 100)
    reach = {}
    for name in ("convolution", "chunked"):
        out, _ = value(SCANS[name], tensors, None)
        (gradient,) = torch.autograd.grad(out[:, 50].sum(), tensors[0])
        reach[name] = gradient[:, 51:].abs().max().item()
    assert reach["chunked"] == 0 and 0 < reach["convolution"] < 1e-13


@each_kind
def test_forms_agree_in_single_precision(kind: str) -> None:
    tensors = inputs(kind, 257, torch.float32)
    wide = [y.detach().to(torch.complex128 if y.is_complex() else torch.float64) for y in tensors]
    exact = value(sequential_scan, wide, None)
    for form in (*SCANS.values(), *([fft_scan] if kind == "s4d" else [])):
        agree(list(value(form, tensors, None)), list(exact), 2e-5)


# ---------------------------------------------------------------- safety


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("decay", [-20.0, -2000.0, -1e30])
def test_strong_decay_neither_overflows_nor_loses_anything(
    kind: str, dtype: torch.dtype, decay: float
) -> None:
    """−20 a step sums to −4000 over 200 tokens, of which no power may be taken; every seventh keeps nearly all."""
    x, dt, A, B, C, initial = inputs(kind, 200, dtype)
    A = torch.full_like(A, decay).requires_grad_()
    with torch.no_grad():
        dt.fill_(1.0)
        dt[:, ::7] = 0.001 / abs(decay)
        dt[:, 1::7] = 0.0
    tensors = [x, dt, A, B, C, initial]
    expected = slopes(*value(sequential_scan, tensors, None), tensors)
    for form in (associative_scan, chunked_scan):
        agree(
            slopes(*value(form, tensors, None), tensors), expected, 1e-11 if dtype == torch.float64 else 2e-5
        )


def test_little_is_kept_for_the_backward_pass() -> None:
    """The inputs, and a state for each chunk: for 512 tokens of 16 states a tenth of what all states would take."""
    length, width, states = 512, 64, 16
    x, dt = torch.randn(1, length, width, 1), torch.rand(1, length, width)
    B, C = torch.randn(2, 1, length, 1, states).unbind()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y.nbytes) or y, lambda y: y):
        given = [y.requires_grad_() for y in (x, dt, -torch.rand(width, states), B, C)]
        chunked_scan(*given, None, torch.zeros(1, width, states, 1))
    assert sum(kept) < 0.2 * 4 * length * width * states


# ---------------------------------------------------------------- padding and documents, precision, and no tokens


def call(kind: str, tensors: list[Tensor], segments: Segments, state: RecurrentState | None = None) -> Tensor:
    x, dt, A, B, C, _ = tensors
    context = context_of(Layout(torch.arange(x.shape[1])[None]))
    return run_scan(x, dt, A, B, C, segments, state, context)


@each_kind
def test_padding_writes_nothing_and_decays_nothing(kind: str) -> None:
    """Wherever it stands, whatever it holds: the outputs, gradients and last state of the real tokens alone."""
    real = torch.rand(BATCH, 90) < 0.6
    tensors, state = inputs(kind, 90), RecurrentState()
    out = call(kind, tensors, Segments(real, None), state)
    (gradient,) = torch.autograd.grad(out[real].sum(), tensors[0])
    assert (gradient[~real] == 0).all()
    for b in range(BATCH):
        kept = [y if y.ndim == 2 or y.shape[1] == 1 else y[b : b + 1, real[b]] for y in tensors[:5]]
        alone = RecurrentState()
        expected = call(kind, [*kept, tensors[5]], Segments(None, None), alone)
        agree([out[b : b + 1, real[b]]], [expected], 1e-12)
        agree([state.tensors["states"][b : b + 1]], [alone.tensors["states"]], 1e-12)


@each_kind
def test_documents_do_not_see_each_other_at_all(kind: str) -> None:
    """The gradient of one document by another is exactly 0, in chunks and across their boundaries."""
    tensors = inputs(kind, 100)
    runs = (torch.arange(100).ge(40).long() + torch.arange(100).ge(70)).expand(BATCH, -1)
    for form in SCANS.values():
        out, state = value(form, tensors, runs)
        for number in range(3):
            here = runs[0] == number
            (gradient,) = torch.autograd.grad(out[:, here].sum(), tensors[0], retain_graph=True)
            assert (gradient[:, ~here] == 0).all() and (gradient[:, here] != 0).any()
        (gradient,) = torch.autograd.grad(state.abs().sum(), tensors[0])
        assert (gradient[:, runs[0] != 2] == 0).all()


@each_kind
def test_scans_run_in_single_precision_under_autocast(kind: str) -> None:
    tensors = inputs(kind, 70, torch.float32)
    expected = call(kind, tensors, Segments(None, None))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(kind, tensors, Segments(None, None)), expected)
    state = RecurrentState()
    coarse = [y if y.is_complex() else y.bfloat16() for y in tensors]
    assert call(kind, coarse, Segments(None, None), state).dtype == torch.float32
    assert state.tensors["states"].dtype == (torch.complex64 if kind == "s4d" else torch.float32)


@each_kind
def test_no_tokens_change_nothing(kind: str) -> None:
    tensors, state = inputs(kind, 5), RecurrentState()
    call(kind, tensors, Segments(None, None), state)
    before = state.tensors["states"]
    nothing = [y if y.ndim == 2 or y.shape[1] == 1 else y[:, :0] for y in tensors[:5]]
    out = call(kind, [*nothing, tensors[5]], Segments(None, None), state)
    assert out.shape[1] == 0 and torch.equal(state.tensors["states"], before)
