"""The short causal convolution: its definition, padding, documents and decoding."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from transformer.enhancements.attention.recurrence import RecurrentState, Segments
from transformer.enhancements.attention.short_convolution import ShortConvolution

WIDTH, LENGTH = 5, 70
ALONE = Segments(None, None)


def made(size: int = 4) -> ShortConvolution:
    return ShortConvolution(WIDTH, size).double()


def inputs(batch: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, requires_grad=True)


def test_it_is_a_depthwise_convolution_of_the_past() -> None:
    """As PyTorch's, in value and gradient, with three zeros before the first token and the kernel reversed."""
    for size in (2, 4, 5):
        module, x = made(size), inputs()
        kernel = module.weight.flip(1)[:, None]
        expected = F.conv1d(F.pad(x.mT, (size - 1, 0)), kernel, groups=WIDTH).mT
        out = module(x, ALONE)
        assert (out - expected).abs().max() <= 1e-14
        dy = torch.randn_like(out)
        for ours, theirs in zip(
            torch.autograd.grad(out, [x, module.weight], dy),
            torch.autograd.grad(expected, [x, module.weight], dy),
            strict=True,
        ):
            assert (ours - theirs).abs().max() <= 1e-13


def test_padding_is_passed_over_wherever_it_stands() -> None:
    module, x = made(), inputs()
    real = torch.rand(3, LENGTH) < 0.5
    real[2] = False
    out = module(x, Segments(real, None))
    (gradient,) = torch.autograd.grad(out[real].sum(), x)
    assert out.isfinite().all() and (gradient[~real] == 0).all()
    for row in range(2):
        alone = module(x[row : row + 1, real[row]], ALONE)
        assert torch.equal(out[row : row + 1, real[row]], alone)


def test_documents_begin_with_nothing_before_them() -> None:
    module, x = made(), inputs(1, 12)
    runs = torch.tensor([[0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3]])
    out = module(x, Segments(None, runs))
    for number in range(4):
        here = runs[0] == number
        assert torch.equal(out[:, here], module(x[:, here], ALONE))
        (gradient,) = torch.autograd.grad(out[:, here].sum(), x, retain_graph=True)
        assert (gradient[:, ~here] == 0).all()


def test_call_by_call_is_the_whole_with_padding_and_documents() -> None:
    """The last three real inputs are kept, of the current document only, however the calls are cut."""
    module, x = made(), inputs()
    real = torch.rand(3, LENGTH) < 0.7
    runs = (torch.rand(3, LENGTH).lt(0.2) & real).cumsum(1)
    whole = module(x, Segments(real, runs))
    for sizes in ([1] * LENGTH, [2, 3, 1, 30, 34], [69, 1]):
        state, parts, before = RecurrentState(), [], torch.zeros(3, 1, dtype=torch.long)
        for piece, here, number in zip(*(y.split(sizes, 1) for y in (x, real, runs)), strict=True):
            parts.append(module(piece, Segments(here, number - before), state))
            before = number[:, -1:]
            assert state.tensors["recent"].shape == (3, 3, WIDTH)
        assert torch.equal(torch.cat(parts, dim=1)[real], whole[real])


def test_one_real_row_among_padding_leaves_the_state_of_others_alone() -> None:
    module, x, state = made(), inputs(2, 6), RecurrentState()
    module(x, ALONE, state)
    kept = state.tensors["recent"].clone()
    real = torch.tensor([[True] * 6, [False] * 6])
    module(inputs(2, 6), Segments(real, None), state)
    assert torch.equal(state.tensors["recent"][1], kept[1])
    assert not torch.equal(state.tensors["recent"][0], kept[0])
