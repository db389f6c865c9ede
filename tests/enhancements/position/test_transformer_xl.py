"""Transformer-XL's attention: its definition for every pair, its memory, and the window of it."""

from __future__ import annotations

from dataclasses import replace
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
from transformer.base.position import NoPositionConfig
from transformer.base.sockets import Kernel, Layout, Mask
from transformer.enhancements import enhance, naive_attention, transformer_xl
from transformer.enhancements.position.transformer_xl import (
    SegmentMemory,
    TransformerXLAttention,
    TransformerXLAttentionConfig,
)
from transformer.models import GPT, gpt, transformer


@each_precision
@each_kernel
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_attention_is_its_definition(
    causal: bool, window: int | None, kernel: Kernel, dtype: torch.dtype, tolerance: float
) -> None:
    """The sinusoid of every distance, made for every pair: nothing is shifted there."""
    layout, positions = ragged()
    module = randomized(TransformerXLAttention(WIDTH, HEADS, window, bias=True), dtype)
    x, visible, weights = inputs(max(LENGTHS), dtype), seen(positions, causal), weights_of(module)
    if window is not None:
        visible = visible & (np.abs(positions[:, :, None] - positions[:, None, :]) < window)

    def head(row: int, h: int, q: Any, k: Any, v: Any) -> Any:
        part = slice(h * E, (h + 1) * E)
        value, back = definitions.transformer_xl_head(
            q,
            k,
            v,
            visible[row],
            positions[row],
            weights["position_proj.weight"][part],
            weights["content_bias"][h],
            weights["position_bias"][h],
        )

        def backward(dy: Any) -> Any:
            gradients = back(dy)
            for name, place in (("position_proj.weight", part), ("content_bias", h), ("position_bias", h)):
                whole = np.zeros_like(weights[name])
                whole[place] = gradients[name]
                gradients[name] = whole
            return gradients

        return value, backward

    expected = definitions.attention_layer(array(x), weights, HEADS, head)
    compare(module(x, context_of(kernel, layout, Mask(causal))), {"x": x}, module, expected, tolerance)


def test_the_term_of_the_distance_by_hand() -> None:
    """One head of width 3, an odd width of the model: (q + v) · W R, entry by entry, for distances of both signs."""
    module = TransformerXLAttention(3, 1).double()
    layout = Layout(torch.tensor([[5, 0, 7]]))
    q = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    asked = module.by_distance(q, layout)
    for i, at in enumerate((5, 0, 7)):
        for j in (0, 2, 9):
            distance = torch.tensor(float(at - j), dtype=torch.float64)
            slow = distance * 10000 ** (-2 / 3)
            sinusoid = torch.stack([distance.sin(), distance.cos(), slow.sin()])
            sought = torch.tensor([j, j * 10000 ** (-2 / 3)], dtype=torch.float64)
            sought = torch.stack([sought.sin(), sought.cos()], dim=-1).flatten()
            expected = q[0, 0, i] @ module.position_proj.weight @ sinusoid
            torch.testing.assert_close(asked[0, 0, i] @ sought, expected, rtol=0, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 20])
def test_segments_are_the_whole_sequence(window: int | None) -> None:
    """A state kept over segments of any lengths: what the whole sequence gives; the memory keeps what can be seen."""
    model = make(language_model(mixer=TransformerXLAttentionConfig(HEADS, window=window)))
    x = tokens(2, 130)
    whole = model(x)
    for sizes in ([64, 66], [32, 32, 32, 34], [1, 1, 30, 5, 93]):
        torch.testing.assert_close(in_segments(model, x, sizes), whole, rtol=0, atol=1e-12)
    state = model.initial_state()
    model.decode(x[:, :64], state)
    memory = state.blocks[0].sublayers["mixer"]
    assert memory.keys.shape[2] == (64 if window is None else 19)
    assert memory.layout.positions[0, -1] == 63


@torch.no_grad()
def test_a_windowed_memory_keeps_the_last_real_tokens_of_each_row() -> None:
    """Prompts padded on the right: a row's last tokens stand far from the end, and are kept all the same."""
    model = make(language_model(mixer=TransformerXLAttentionConfig(HEADS, window=4)))
    x, lengths = tokens(3, 40), (30, 6, 2)
    real = torch.arange(30) < torch.tensor(lengths)[:, None]
    state = model.initial_state()
    model.decode(torch.where(real, x[:, :30], 0), state, real)
    memory = state.blocks[0].sublayers["mixer"]
    assert memory.keys.shape[2] == 3
    assert memory.layout.real.tolist() == [[True] * 3, [True] * 3, [False, True, True]]
    assert memory.layout.positions[memory.layout.real].tolist() == [27, 28, 29, 3, 4, 5, 0, 1]
    steps = torch.cat(
        [
            model.decode(torch.stack([x[r, n + i] for r, n in enumerate(lengths)])[:, None], state)
            for i in range(5)
        ],
        1,
    )
    for row, n in enumerate(lengths):
        alone = model(x[row : row + 1, : n + 5])[0, n:]
        torch.testing.assert_close(steps[row], alone, rtol=0, atol=1e-12)


def test_a_window_of_one_sees_itself_alone_and_keeps_nothing() -> None:
    memory = SegmentMemory(window=1)
    k = torch.randn(2, 3, 4, 5)
    kept, _, _ = memory.append(k, k, Layout(torch.arange(4)[None]))
    assert torch.equal(kept, k) and memory.keys is not None and memory.keys.shape == (2, 3, 0, 5)


def test_no_gradient_passes_into_the_memory() -> None:
    """Training by segments: the second's loss depends on the first in value, and gives its tokens no gradient."""
    config = replace(language_model(mixer=TransformerXLAttentionConfig(HEADS)), tie_embeddings=False)
    model = make(config)
    x, other = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[2, 1, 3, 4, 5, 6]])
    outputs = []
    for row in (x, other):
        state = model.initial_state()
        model.decode(row[:, :3], state)
        outputs.append(model.decode(row[:, 3:], state))
    assert not torch.allclose(*outputs)
    outputs[0].square().sum().backward()
    touched = model.embedding.weight.grad.abs().sum(-1) > 0
    assert touched.nonzero()[:, 0].tolist() == [4, 5, 6]


def test_taps_and_switches() -> None:
    """Its queries and keys are plain attention's, only wider, so what reads attention from outside reads it too."""
    from transformer.analysis.taps import trace

    model = GPT(vocab_size=11, d_model=16, n_heads=2, n_layers=1, use_transformer_xl=True)
    weights = trace(model, tokens(2, 6), taps="*.weights")
    assert [w.shape for w in weights.values()] == [(2, 2, 6, 6)]
    torch.testing.assert_close(next(iter(weights.values())).sum(-1), torch.ones(2, 2, 6))
    assert model.config == enhance(gpt(11, 16, 2, 1), transformer_xl())


def test_transformer_xl_changes_self_attention_alone() -> None:
    config = enhance(transformer(100, 16, 2, 2), transformer_xl(7))
    for stack in (config.encoder, config.decoder):
        assert stack.position == NoPositionConfig()
        assert all(block.mixer == TransformerXLAttentionConfig(2, window=7) for block in stack.blocks)
    assert (
        config.decoder.blocks[0].cross_attention
        == transformer(100, 16, 2, 2).decoder.blocks[0].cross_attention
    )


def test_what_is_sought_far_away_is_as_exact_as_nearby() -> None:
    """float32 at positions of a million: angles are made in float64, and only distances count."""
    module = randomized(TransformerXLAttention(WIDTH, HEADS), torch.float32)
    x = inputs(70, torch.float32)[:1]
    near, far = (
        module(x, context_of(naive_attention, Layout(at + torch.arange(70)[None]), Mask(causal=True)))
        for at in (0, 10**6)
    )
    torch.testing.assert_close(near, far, rtol=0, atol=2e-5)
