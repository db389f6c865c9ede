"""The algebra of rotary positions."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests import references
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
    real_tokens,
    weights_of,
)
from tests.catalog import make
from tests.enhancements.position import definitions
from tests.enhancements.position.helpers import E, language_model, ragged, seen
from tests.properties import tokens
from transformer.base import MultiHeadAttention
from transformer.base.attention import MultiHeadAttentionConfig
from transformer.base.sockets import Layout, Mask, Position
from transformer.enhancements import naive_attention
from transformer.enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from transformer.enhancements.position.rope import (
    RotaryPosition,
    RotaryPositionConfig,
    to_half,
    to_interleaved,
)
from transformer.enhancements.position.yarn import YaRNRopeScalingConfig
from transformer.models import GPT


def turned(x: torch.Tensor, positions: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    return RotaryPosition(base).rotate(x, x, Layout(positions))[0]


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_a_rotation_is_a_product_of_complex_numbers(base: float) -> None:
    x, positions = torch.randn(2, 12, 65, 16, dtype=torch.float64), torch.randint(2000, (2, 65))
    got = turned(x, positions, base).numpy()
    for row in range(2):
        expected = references.turn(x[row].numpy(), positions[row].numpy().astype(float)[None], base)
        assert np.abs(got[row] - expected).max() <= 1e-11


def test_scores_depend_on_distances_alone_and_lengths_are_kept() -> None:
    x, positions = torch.randn(1, 3, 64, 8, dtype=torch.float64), torch.arange(64)[None]
    near, far = turned(x, positions), turned(x, positions + 5000)
    torch.testing.assert_close(near.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(near @ near.mT, far @ far.mT, rtol=0, atol=1e-10)
    assert not torch.allclose(near @ near.mT, x @ x.mT)
    assert torch.equal(turned(x, positions * 0), x)


def test_far_positions_are_as_exact_as_near_ones() -> None:
    x, positions = torch.randn(1, 1, 50, 64), torch.arange(10**6, 10**6 + 50)[None]
    error = turned(x, positions) - turned(x.double(), positions)
    assert error.abs().max() <= 1e-6
    coarse = turned(x.bfloat16(), positions)
    exact = turned(x.bfloat16().double(), positions)
    assert (coarse - exact).abs().max() <= 2.0**-8 * exact.abs().max()  # one rounding, of the result


def test_a_cast_of_the_model_does_not_reach_the_angles() -> None:
    assert RotaryPosition().bfloat16().circle(torch.arange(3)[None], 8)[0].dtype == torch.float64
    assert not list(RotaryPosition().bfloat16().buffers())


def test_heads_of_odd_width_are_refused() -> None:
    model = GPT(vocab_size=9, d_model=15, n_heads=3, n_layers=1, use_rope=True)
    with pytest.raises(
        ValueError, match=r"^rotary position needs heads of even width, got 5; change n_heads or d_model$"
    ):
        model(torch.zeros(1, 2).long())


def context(layout: Layout, position: Position, causal: bool) -> Any:
    return context_of(naive_attention, layout, Mask(causal), position=position)


FORMS = {
    "interleaved": RotaryPositionConfig(layout="interleaved"),
    "half of each head": RotaryPositionConfig(100.0, fraction=0.5),
    "interleaved half": RotaryPositionConfig(100.0, "interleaved", 0.5),
    "yarn": RotaryPositionConfig(100.0, scaling=YaRNRopeScalingConfig(4.0, 64)),
}


@each_precision
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_attention_with_rotary_position_is_its_definition(
    causal: bool, form: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Heads of 4 dimensions, every matrix of every position written out."""
    config, (layout, positions) = FORMS[form], ragged()
    module, x = randomized(MultiHeadAttention(WIDTH, HEADS, bias=True), dtype), inputs(max(LENGTHS), dtype)
    width = int(E * config.fraction)
    theta, factor = config.scaling.frequencies(width, config.base, None)
    size = np.full(len(theta), factor)
    matrices = [
        definitions.rotations(row, E, theta.numpy(), definitions.paired(width, config.layout), size)
        for row in positions
    ]
    visible = seen(positions, causal)

    def head(row: int, h: int, q: Any, k: Any, v: Any) -> Any:
        return definitions.linear_map_head(q, k, v, visible[row], matrices[row], matrices[row])

    expected = definitions.attention_layer(array(x), weights_of(module), HEADS, head)
    output = module(x, context(layout, config.build(WIDTH), causal))
    compare(output, {"x": x}, module, expected, tolerance)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_layouts_are_one_scheme_up_to_the_order_of_rows(fraction: float) -> None:
    """Whole models: the same logits after the rows of W^Q and W^K are reordered, in both directions."""
    half = RotaryPositionConfig(100.0, fraction=fraction)
    interleaved = replace(half, layout="interleaved")
    for old, new, convert in ((half, interleaved, to_interleaved), (interleaved, half, to_half)):
        wide = MultiHeadAttentionConfig(
            6, bias=True
        )  # heads of 8: with 4 the two halves of a half are one pair each
        source, target = make(language_model(old, wide)), make(language_model(new, wide))
        weights = dict(source.state_dict())
        target.load_state_dict(weights)
        x, real = tokens(3, 70), real_tokens()
        assert not torch.allclose(target(x, real), source(x, real))
        for name, rows in weights.items():
            if re.search(r"\.[qk]_proj\.", name):
                weights[name] = convert(rows, n_heads=6, fraction=fraction)
        target.load_state_dict(weights)
        torch.testing.assert_close(target(x, real), source(x, real), rtol=0, atol=1e-12)


def test_the_rows_of_shared_keys_are_reordered_by_their_own_number_of_heads() -> None:
    half, interleaved = RotaryPositionConfig(), RotaryPositionConfig(layout="interleaved")
    grouped = GroupedQueryAttentionConfig(6, 2)
    source, target = make(language_model(half, grouped)), make(language_model(interleaved, grouped))
    weights = dict(source.state_dict())
    for name, rows in weights.items():
        if re.search(r"\.[qk]_proj\.", name):
            weights[name] = to_interleaved(rows, n_heads=6 if ".q_proj" in name else 2)
    target.load_state_dict(weights)
    x = tokens(2, 70)
    torch.testing.assert_close(target(x), source(x), rtol=0, atol=1e-12)


def test_reordering_rows_by_hand_and_back() -> None:
    rows = torch.arange(12.0)
    assert to_interleaved(rows, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert to_half(rows, 2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert to_interleaved(rows, 1, fraction=0.5).tolist() == [0, 3, 1, 4, 2, 5, 6, 7, 8, 9, 10, 11]
    matrix = torch.randn(24, 5)
    for fraction in (1.0, 0.5, 0.34):
        assert torch.equal(to_half(to_interleaved(matrix, 2, fraction), 2, fraction), matrix)


def test_the_half_layout_is_hugging_faces() -> None:
    pytest.importorskip("transformers", reason="Hugging Face's transformers is not installed")
    from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as interleaved_rotary
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as half_rotary

    q, k = torch.randn(2, 2, 3, 70, 8, dtype=torch.float64)
    layout = Layout(torch.arange(70)[None] * 3)
    theta = 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    angles = (layout.positions[..., None] * theta).repeat(1, 1, 2)
    for config, rotary in (
        (RotaryPositionConfig(), half_rotary),
        (RotaryPositionConfig(layout="interleaved"), interleaved_rotary),
    ):
        expected = rotary(q, k, angles.cos(), angles.sin())
        for ours, other in zip(config.build(24).rotate(q, k, layout), expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=0, atol=1e-12)


def test_fractions_that_give_no_pairs_and_rows_that_are_no_heads_are_refused() -> None:
    message = (
        r"^rotary position turns pairs, but 0.4 of a head's 8 dimensions is 3; "
        r"the nearest fraction that gives pairs is 0.25$"
    )
    with pytest.raises(ValueError, match=message):
        RotaryPositionConfig(fraction=0.4).build(24).circle(torch.zeros(1, 1).long(), 8)
    with pytest.raises(ValueError, match=r"^10 rows are not those of n_heads 4 heads of one width$"):
        to_half(torch.zeros(10, 3), 4)


def test_what_is_not_turned_stays_bit_by_bit() -> None:
    x = torch.randn(2, 3, 5, 16).bfloat16()
    for layout in ("half", "interleaved"):
        config = RotaryPositionConfig(layout=layout, fraction=0.25)
        turned, _ = config.build(48).rotate(x, x, Layout(torch.arange(5)[None]))
        assert torch.equal(turned[..., 4:], x[..., 4:]) and not torch.equal(turned[..., :4], x[..., :4])
