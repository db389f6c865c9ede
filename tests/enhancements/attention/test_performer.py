"""Performer: an unbiased estimate of softmax attention, stable, and causal to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.enhancements.attention import linear_references as references
from tests.enhancements.attention.linear_references import (
    HEADS,
    WIDTH,
    check_definition,
    context_of,
    randomized,
)
from transformer.base.attention import MultiHeadAttention
from transformer.base.sockets import Layout
from transformer.enhancements import enhance, performer
from transformer.enhancements.attention.performer import (
    LOWEST,
    Performer,
    PerformerConfig,
    orthogonal_directions,
    running_max,
)
from transformer.models import DecoderOnly, gpt


def layout_of(length: int) -> Layout:
    return Layout(torch.arange(length)[None])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_it_is_its_definition(causal: bool, dtype: torch.dtype, tolerance: float) -> None:
    """All that features are divided by cancels: the definition has no divisors. ε here is nothing beside the sums."""
    module = randomized(Performer(WIDTH, HEADS, 10, bias=True, epsilon=1e-30), dtype)
    check_definition(
        module,
        lambda x, w: references.performer(x, w, causal),
        dtype,
        tolerance,
        causal=causal,
        left=not causal,
    )


# ---------------------------------------------------------------- the estimate


def estimates(q: Tensor, k: Tensor, count: int, draws: int) -> Tensor:
    """φ(q)·φ(k) for independent draws of the directions."""
    module, pair = Performer(len(q), 1, draws * count).double(), torch.stack([q, k])[None, None]
    features = module.exponents(pair)[0, 0].exp().unflatten(1, (draws, count))
    return (features[0] * features[1]).sum(1) * draws  # each feature is divided by √(draws·count)


def test_the_product_of_features_is_unbiased_and_its_error_falls_with_m() -> None:
    width = 8
    q, k = 0.5 * torch.randn(2, width, dtype=torch.float64)
    exact = math.exp(q @ k / math.sqrt(width))
    spreads = []
    for count in (8, 32, 128):
        found = estimates(q, k, count, 1000)
        spreads.append(found.std().item())
        assert abs(found.mean() - exact) <= 4 * spreads[-1] / math.sqrt(1000), count
    for more, fewer in zip(spreads[1:], spreads, strict=False):
        assert 0.4 < more / fewer < 0.6  # four times as many directions: half the error


def test_orthogonal_directions_vary_less_than_independent_ones() -> None:
    width, draws = 8, 30_000
    q = k = torch.full((width,), 0.3, dtype=torch.float64)
    independent = torch.randn(draws, width, width, dtype=torch.float64)
    x = (q + k) / width**0.25
    sizes = (q @ q + k @ k) / math.sqrt(width) / 2
    plain = (independent @ x - sizes).exp().mean(dim=1)
    assert estimates(q, k, width, draws).var() < 0.93 * plain.var()


def test_directions_are_orthogonal_in_blocks_and_as_long_as_normal_vectors() -> None:
    directions = orthogonal_directions(20, 8)
    assert directions.shape == (20, 8)
    for block in directions.split(8):
        products = block @ block.mT
        assert (products - products.diagonal().diag()).abs().max() <= 1e-12
    many = orthogonal_directions(8000, 8)
    lengths = many.square().sum(1)
    assert abs(lengths.mean() - 8) < 0.2 and abs(lengths.var() - 16) < 1.5
    assert many.mean(0).abs().max() < 0.06  # uniform over the sphere: without the signs of r it is not
    assert abs((many[:, 0] ** 4).mean() - 3) < 0.4


def test_attention_approaches_softmax_attention_as_m_grows() -> None:
    """Root-mean-square error over a causal sequence, the median of 9 draws: a few are far off, as exp makes them."""
    softmax = randomized(MultiHeadAttention(16, 2)).eval()
    x = 0.4 * torch.randn(2, 64, 16, dtype=torch.float64)
    exact = softmax(x, context_of(layout_of(64)))
    errors = []
    for count in (16, 1024):
        found = []
        for _ in range(9):
            module = Performer(16, 2, count).double()
            module.load_state_dict({**softmax.state_dict(), "directions": module.directions})
            found.append((module(x, context_of(layout_of(64))) - exact).square().mean().sqrt().item())
        errors.append(np.median(found))
    assert errors[1] < 0.3 * errors[0]  # √64 = 1/0.125
    assert errors[1] < 0.1 * exact.std().item()


# ---------------------------------------------------------------- stable and causal


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_large_inputs_neither_overflow_nor_vanish(causal: bool) -> None:
    """Features of exponents in the hundreds, of either sign, in float32: as the definition in float64."""
    module = randomized(Performer(16, 2, 12))
    module.directions *= 6  # an exponent is at most half a direction's square: in wide heads, this much
    x = torch.randn(2, 80, 16, dtype=torch.float64) * torch.linspace(0.1, 12, 80)[:, None].double()
    x[1] = x[1].flip(0)  # largest keys first, then last
    exponents = module.exponents(module.k_proj(x).unflatten(-1, (2, 8)).transpose(1, 2))
    assert exponents.max() > 40 and exponents.amax(-1).min() < -300
    single = Performer(16, 2, 12)
    single.load_state_dict(module.state_dict())
    leaf = x.float().requires_grad_()
    found = single(leaf, context_of(layout_of(80), causal))
    found.square().sum().backward()
    assert found.isfinite().all() and leaf.grad is not None and leaf.grad.isfinite().all()
    exact = module(x, context_of(layout_of(80), causal))
    assert (
        found - exact
    ).abs().max() <= 2e-3 * exact.abs().max()  # exponents of 300 have errors of 3e-5 themselves


def test_no_later_key_and_no_other_row_enters_a_divisor() -> None:
    """Not even the last bit of an output changes where later keys, or another row's, become the largest by far."""
    module = randomized(Performer(16, 2, 12, epsilon=1e-3))
    module.directions *= 6  # so that longer keys have larger features
    x = torch.randn(2, 70, 16, dtype=torch.float64)
    whole = module(x, context_of(layout_of(70)))
    louder = x.clone()
    louder[0, 40:] *= 3
    largest = [
        module.exponents(module.k_proj(y).unflatten(2, (2, 8)).transpose(1, 2)).max() for y in (x, louder)
    ]
    assert largest[1] > largest[0] + 20
    changed = module(louder, context_of(layout_of(70)))
    assert torch.equal(changed[0, :40], whole[0, :40])
    assert torch.equal(changed[1], whole[1])
    assert not torch.equal(changed[0, 40:], whole[0, 40:])
    rows = context_of(layout_of(70), causal=False)
    assert torch.equal(module(louder, rows)[1], module(x, rows)[1])


def test_a_quiet_document_after_a_loud_one_is_as_alone() -> None:
    """With an ε that tells: the divisors begin anew with each document, and so they do in an encoder."""
    for causal in (True, False):
        module = randomized(Performer(16, 2, 12, epsilon=0.1))
        x = torch.randn(1, 60, 16, dtype=torch.float64)
        x[:, :20] *= 10
        x[:, 40:] *= 5
        documents = torch.arange(60)[None] // 20
        packed = module(x, context_of(Layout.of(documents, documents=documents), causal))
        for number in range(3):
            here = documents[0] == number
            alone = module(x[:, here], context_of(layout_of(20), causal))
            assert (packed[:, here] - alone).abs().max() <= 1e-12


def test_a_document_after_one_of_huge_features_is_finite() -> None:
    """Where the divisor falls by more than exp can say in float32, nothing decays by a power above 1."""
    module = Performer(16, 2, 12)
    with torch.no_grad():
        module.directions *= 6
        module.k_proj.weight.copy_(torch.eye(16))
        x = 0.1 * torch.randn(1, 40, 16)
        x[:, :20] = module.directions[0].repeat(2) * 8**0.25  # as like a direction as a key can be
    assert module.exponents(x[:, :1].unflatten(2, (2, 8)).transpose(1, 2)).max() > 100
    documents, x = torch.arange(40)[None] // 20, x.requires_grad_()
    packed = module(x, context_of(Layout.of(documents, documents=documents)))
    packed.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    alone = module(x[:, 20:], context_of(layout_of(20)))
    assert (packed[:, 20:] - alone).abs().max() <= 1e-5


def test_the_running_maximum_begins_anew_with_each_run() -> None:
    x = torch.randn(2, 3, 50, 1)
    runs = torch.rand(2, 50).lt(0.15).cumsum(1)
    found = running_max(x, runs)
    for b in range(2):
        for t in range(50):
            seen = (runs[b] == runs[b, t]) & (torch.arange(50) <= t)
            assert torch.equal(found[b, :, t], x[b, :, seen].amax(dim=1))
    assert torch.equal(running_max(x, None), x.cummax(dim=2).values)
    assert LOWEST + 1 < -1e29 and torch.tensor(LOWEST, dtype=torch.float32).isfinite()


# ---------------------------------------------------------------- as a part


def test_the_directions_are_saved_and_no_parameters() -> None:
    module = Performer(16, 2, None)
    assert module.directions.shape == (18, 8)  # ⌈8 ln 8⌉ = 17, made even for rotations
    assert Performer(2, 2, None).directions.shape == (2, 1)
    assert "directions" in module.state_dict() and "directions" not in dict(module.named_parameters())
    other = Performer(16, 2, None)
    x, context = torch.randn(1, 9, 16), context_of(layout_of(9))
    assert not torch.equal(module.directions, other.directions)
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x, context), other(x, context))


def test_the_enhancement() -> None:
    config = enhance(gpt(vocab_size=20, d_model=16, n_heads=4, n_layers=2), performer(9))
    assert {type(block.mixer) for block in config.stack.blocks} == {PerformerConfig}  # type: ignore[attr-defined]
    assert DecoderOnly(config).stack.blocks[0].mixer.branch.directions.shape == (9, 4)  # type: ignore[union-attr]


def test_the_state_does_not_grow() -> None:
    module = Performer(WIDTH, HEADS, 6)
    state, sizes = module.initial_state(), set()
    for length in (5, 1, 64, 1, 200):
        module(torch.randn(2, length, WIDTH), context_of(layout_of(length)), state)
        sizes.add(sum(x.nbytes for x in state.tensors.values()))
    assert sizes == {2 * HEADS * (6 * 5 + 1) * 4}
