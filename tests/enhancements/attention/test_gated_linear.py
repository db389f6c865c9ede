"""Gated linear attention."""

from __future__ import annotations

import pytest
import torch

from tests.enhancements.attention import linear_references as references
from tests.enhancements.attention.linear_references import (
    HEADS,
    WIDTH,
    check_definition,
    context_of,
    randomized,
)
from transformer.base.sockets import Layout
from transformer.base.transformer import transformer
from transformer.enhancements import enhance, gated_linear_attention
from transformer.enhancements.attention.gated_linear import GatedLinearAttention, GatedLinearAttentionConfig


def layout_of(length: int) -> Layout:
    return Layout(torch.arange(length)[None])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("temperature", [16.0, 0.5])
def test_it_is_its_definition(temperature: float, dtype: torch.dtype, tolerance: float) -> None:
    module = randomized(GatedLinearAttention(WIDTH, HEADS, 5, temperature), dtype)
    check_definition(
        module,
        lambda x, w: references.gated_linear(x, w, temperature),
        dtype,
        tolerance,
        left=temperature == 16,
    )


def test_a_closed_gate_forgets_at_once_and_harms_nothing() -> None:
    """A log-decay of −20 and of −2000 at every token, in float32: each token then reads itself alone."""
    module = randomized(GatedLinearAttention(16, 2), torch.float32)
    x = torch.randn(1, 200, 16, requires_grad=True)
    alone = torch.cat([module(y, context_of(layout_of(1))) for y in x.split(1, 1)], dim=1)
    for gate in (-320.0, -32_000.0):
        with torch.no_grad():
            module.decay_proj[1].bias.fill_(gate)
        out = module(x, context_of(layout_of(200)))
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        assert (out - alone).abs().max() <= 1e-5 and gradient.isfinite().all()


def test_decays_near_one_survive_autocast() -> None:
    """1 − α of 1e-4 is nothing to bfloat16, in which α would be 1."""
    module = randomized(GatedLinearAttention(16, 2, temperature=1.0), torch.float32)
    with torch.no_grad():
        module.decay_proj[1].weight.zero_()
        module.decay_proj[1].bias.fill_(9.21)
    with torch.autocast("cpu", torch.bfloat16):
        decay = module.log_decay(torch.randn(1, 3, 16))
    assert decay.dtype == torch.float32
    assert decay.flatten().tolist() == pytest.approx([-1e-4] * 24, rel=0.04)


def test_the_enhancement_and_its_refusals() -> None:
    changed = enhance(transformer(100, 16, n_heads=4, n_layers=2), gated_linear_attention())
    assert changed.decoder.blocks[1].mixer == GatedLinearAttentionConfig(4)  # type: ignore[attr-defined]
    assert changed.encoder == transformer(100, 16, n_heads=4, n_layers=2).encoder
    module = GatedLinearAttentionConfig(2).build(8)
    with pytest.raises(
        ValueError, match="gated linear attention reads from left to right.*not causal; use linear"
    ):
        module(torch.randn(1, 4, 8), context_of(layout_of(4), causal=False))
    with pytest.raises(ValueError, match="d_model 8 cannot be split into n_heads 5.*nearest n_heads .* is 4"):
        GatedLinearAttentionConfig(5).build(8)


def test_about_four_d_squared_weights_and_a_state_that_does_not_grow() -> None:
    module = GatedLinearAttention(512, 4)
    weights = sum(p.numel() for p in module.parameters())
    assert 4 * 512**2 < weights < 4.1 * 512**2
    module, sizes = GatedLinearAttention(WIDTH, HEADS), set()
    state = module.initial_state()
    for length in (5, 1, 64, 1, 200):
        module(torch.randn(2, length, WIDTH), context_of(layout_of(length)), state)
        sizes.add(sum(x.nbytes for x in state.tensors.values()))
    assert sizes == {2 * HEADS * 2 * 4 * 4}
