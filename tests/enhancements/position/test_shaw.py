"""Self-attention with relative position representations."""

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
from tests.catalog import make
from tests.enhancements.position import definitions
from tests.enhancements.position.helpers import in_segments, language_model, ragged, seen
from tests.properties import tokens
from transformer.base.attention import MultiHeadAttentionConfig
from transformer.base.position import NoPositionConfig
from transformer.base.sockets import Layout, Mask
from transformer.enhancements import enhance, naive_attention, shaw
from transformer.enhancements.position.alibi import ALiBi
from transformer.enhancements.position.shaw import ShawAttention, ShawAttentionConfig
from transformer.models import transformer


@each_precision
@pytest.mark.parametrize("max_distance", [1, 16, 100])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_attention_is_its_definition(
    causal: bool, max_distance: int, dtype: torch.dtype, tolerance: float
) -> None:
    """With a vector for every pair of tokens, at lengths below and beyond the clipped distance."""
    layout, positions = ragged()
    module = randomized(ShawAttention(WIDTH, HEADS, max_distance, bias=True), dtype)
    x, visible, weights = inputs(max(LENGTHS), dtype), seen(positions, causal), weights_of(module)

    def head(row: int, h: int, q: Any, k: Any, v: Any) -> Any:
        relative = positions[row][None, :] - positions[row][:, None]
        rows = np.clip(relative, -max_distance, max_distance).astype(int) + max_distance
        tables = weights["key_table.weight"], weights["value_table.weight"]
        return definitions.shaw_head(q, k, v, visible[row], rows, *tables)

    expected = definitions.attention_layer(array(x), weights, HEADS, head)
    compare(
        module(x, context_of(naive_attention, layout, Mask(causal))), {"x": x}, module, expected, tolerance
    )


def test_rows_by_hand() -> None:
    module = ShawAttention(4, 1, max_distance=2)
    context = context_of(naive_attention, Layout(torch.arange(4)[None]), Mask())
    assert module.rows(context.pairs)[0].tolist() == [[2, 3, 4, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]]


@torch.no_grad()
def test_without_its_tables_it_is_plain_attention_and_it_adds_to_the_stacks_bias() -> None:
    module = ShawAttention(WIDTH, HEADS, max_distance=3).double()
    plain = MultiHeadAttentionConfig(HEADS).build(WIDTH).double()
    for table in (module.key_table, module.value_table):
        table.weight.zero_()
    plain.load_state_dict({n: w for n, w in module.state_dict().items() if "table" not in n})
    layout, _ = ragged()
    x = inputs(max(LENGTHS), torch.float64)
    for options in ({}, {"position": ALiBi(HEADS).double()}):
        context = context_of(naive_attention, layout, Mask(causal=True), **options)
        torch.testing.assert_close(module(x, context), plain(x, context), rtol=0, atol=1e-12)


def test_dropout_falls_on_the_weights_of_both_sums() -> None:
    """One weight, kept or dropped whole: a token alone gives its value plus its vector, scaled, or nothing."""
    module = ShawAttention(4, 1, max_distance=1, dropout=0.5).train()
    with torch.no_grad():
        module.out_proj.weight.copy_(torch.eye(4))
    context = context_of(naive_attention, Layout(torch.zeros(1, 1).long()), Mask())
    x = torch.randn(1, 1, 4)
    whole = 2 * (module.v_proj(x) + module.value_table.weight[1])
    for _ in range(20):
        out = module(x, context)
        assert torch.equal(out, torch.zeros_like(out)) or torch.allclose(out, whole)


@torch.no_grad()
def test_segments_are_the_whole_sequence() -> None:
    model = make(language_model(mixer=ShawAttentionConfig(HEADS, max_distance=16)))
    x = tokens(2, 130)
    torch.testing.assert_close(in_segments(model, x, [64, 1, 65]), model(x), rtol=0, atol=1e-12)


def test_shaw_changes_self_attention_alone() -> None:
    config = enhance(transformer(100, 16, 2, 2), shaw(5))
    for stack in (config.encoder, config.decoder):
        assert stack.position == NoPositionConfig()
        assert all(block.mixer == ShawAttentionConfig(2, max_distance=5) for block in stack.blocks)
    assert (
        config.decoder.blocks[0].cross_attention
        == transformer(100, 16, 2, 2).decoder.blocks[0].cross_attention
    )
