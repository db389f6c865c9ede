"""xPos: its definition, its decay, and that no centre but a fixed one agrees with a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.base.test_references import (
    HEADS,
    LENGTHS,
    WIDTH,
    array,
    compare,
    context_of,
    each_precision,
    inputs,
    randomized,
    weights_of,
)
from tests.catalog import each_kernel, make
from tests.enhancements.position import definitions
from tests.enhancements.position.helpers import E, in_segments, language_model, ragged, seen
from tests.properties import tokens
from transformer.base import MultiHeadAttention
from transformer.base.sockets import Kernel, Layout, Mask
from transformer.enhancements import enhance, rope, xpos
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.enhancements.position.xpos import XPositionConfig
from transformer.models import gpt, transformer


@each_precision
@each_kernel
def test_attention_with_xpos_is_its_definition(kernel: Kernel, dtype: torch.dtype, tolerance: float) -> None:
    """ζ_j^(n/S) on queries and ζ_j^(−m/S) on keys, without any centre; a small S, so that the decay is felt."""
    config, (layout, positions) = XPositionConfig(100.0, scale_base=20.0, max_seq_len=80), ragged()
    module, x = randomized(MultiHeadAttention(WIDTH, HEADS, bias=True), dtype), inputs(max(LENGTHS), dtype)
    theta = np.array([100.0 ** (-2 * j / E) for j in range(E // 2)])
    zeta = np.array([(2 * j / E + 0.4) / 1.4 for j in range(E // 2)])
    pairs, visible = definitions.paired(E, "half"), seen(positions, causal=True)
    of_q, of_k = (
        [
            definitions.rotations(row, E, theta, pairs, zeta ** (sign * row[:, None] / 20.0))
            for row in positions
        ]
        for sign in (1, -1)
    )

    def head(row: int, h: int, q: Any, k: Any, v: Any) -> Any:
        return definitions.linear_map_head(q, k, v, visible[row], of_q[row], of_k[row])

    expected = definitions.attention_layer(array(x), weights_of(module), HEADS, head)
    output = module(x, context_of(kernel, layout, Mask(causal=True), position=config.build(WIDTH)))
    compare(output, {"x": x}, module, expected, tolerance)


def test_the_decay_of_each_pair_is_a_power_of_its_zeta() -> None:
    """For vectors of one pair the score over rotary's is ζ_j^(distance/512), and ζ runs from 2/7 upward."""
    e, layout = 8, Layout(torch.arange(400)[None])
    xpos_, rotary = XPositionConfig().build(e), RotaryPositionConfig().build(e)
    for j, zeta in enumerate((2 / 7, 0.65 / 1.4, 0.9 / 1.4, 1.15 / 1.4)):
        x = torch.zeros(1, 1, 400, e, dtype=torch.float64)
        x[..., j] = x[..., j + e // 2] = 1
        scores, plain = (q @ k.mT for q, k in (p.rotate(x, x, layout) for p in (xpos_, rotary)))
        distance = (layout.positions[0, :, None] - layout.positions[0]).double()
        torch.testing.assert_close(scores[0, 0], plain[0, 0] * zeta ** (distance / 512), rtol=0, atol=1e-12)


@torch.no_grad()
def test_far_out_it_stays_finite_and_exact() -> None:
    config = XPositionConfig(max_seq_len=60000)
    x, near, far = torch.randn(1, 2, 64, 8), torch.arange(64)[None], torch.arange(59936, 60000)[None]
    scores = {}
    for name, at in (("near", near), ("far", far)):
        q, k = config.build(16).rotate(x, x, Layout(at))
        assert q.isfinite().all() and k.isfinite().all()
        scores[name] = q @ k.mT
    torch.testing.assert_close(scores["near"], scores["far"], rtol=1e-5, atol=1e-5)


def test_a_length_that_leaves_float32_is_refused() -> None:
    message = (
        r"^xPos over max_seq_len 70000 with scale_base 512 leaves the range of float32; "
        r"lower max_seq_len to 65391 or raise scale_base to 549$"
    )
    with pytest.raises(ValueError, match=message):
        XPositionConfig(max_seq_len=70000)
    XPositionConfig(max_seq_len=65391)
    XPositionConfig(max_seq_len=70000, scale_base=549.0)


@torch.no_grad()
def test_segments_are_the_whole_sequence() -> None:
    """A centre that depended on the length of the call, as in the authors' code, would fail here."""
    model = make(language_model(XPositionConfig(max_seq_len=130, scale_base=30.0)))
    x = tokens(2, 130)
    torch.testing.assert_close(in_segments(model, x, [64, 1, 65]), model(x), rtol=0, atol=1e-12)


def test_a_stack_that_reads_both_ways_gets_rotary_position() -> None:
    config = enhance(transformer(100, 16, 2, 1, max_seq_len=77), xpos(50.0))
    assert config.encoder.position == RotaryPositionConfig(50.0)
    assert config.decoder.position == XPositionConfig(50.0, max_seq_len=77)
    assert enhance(gpt(100, 16, 2, 1, max_seq_len=30), xpos()).stack.position == XPositionConfig(
        max_seq_len=30
    )
    assert enhance(gpt(100, 16, 2, 1), rope(), xpos()).stack.position == XPositionConfig(max_seq_len=1024)
    assert enhance(gpt(100, 16, 2, 1), xpos(max_seq_len=7)).stack.position.max_seq_len == 7
