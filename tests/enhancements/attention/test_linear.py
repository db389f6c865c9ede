"""Linear attention with elu + 1."""

from __future__ import annotations

from typing import Any

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
from transformer.base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from transformer.base.sockets import Layout, Mask, Position
from transformer.base.transformer import transformer
from transformer.enhancements import enhance, linear_attention, sliding_window
from transformer.enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from transformer.enhancements.attention.linear import (
    LinearAttention,
    LinearAttentionConfig,
    causal_linear_attention,
    full_linear_attention,
    parallel_linear_attention,
)
from transformer.enhancements.attention.recurrence import RecurrentState, Segments
from transformer.enhancements.position.rope import RotaryPosition
from transformer.models import gpt

each_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)


@each_precision
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("turn", [False, True], ids=["plain", "rope"])
def test_it_is_its_definition(turn: bool, causal: bool, dtype: torch.dtype, tolerance: float) -> None:
    """With an ε that is large, which tells it in the denominator from elsewhere."""
    module = randomized(LinearAttention(WIDTH, HEADS, bias=True, epsilon=0.3), dtype)
    options = {"position": RotaryPosition()} if turn else {}
    check_definition(
        module,
        lambda x, w: references.linear_attention(x, w, causal, 0.3, turn),
        dtype,
        tolerance,
        causal=causal,
        left=turn,
        **options,
    )


@pytest.mark.parametrize("length", [1, 7, 64, 127, 257])
@pytest.mark.parametrize("turn", [False, True], ids=["plain", "rope"])
def test_parallel_chunked_and_recurrent_forms_are_one(turn: bool, length: int) -> None:
    """In value and gradient, numerator and normalizer; the recurrent form token by token through its state."""
    q, k, v = (torch.randn(2, 3, length, 6, dtype=torch.float64) for _ in range(3))
    leaves = [q.exp().requires_grad_(), k.exp().requires_grad_(), v.requires_grad_()]
    layout, plain = Layout(torch.arange(length)[None]), Segments(None, None)
    turned = RotaryPosition().rotate(*leaves[:2], layout) if turn else tuple(leaves[:2])
    no_decay = torch.zeros(1, 1, length, 1, dtype=torch.float64)
    visible = Mask(causal=True).visible(layout, layout)
    assert visible is not None
    parallel = parallel_linear_attention(*leaves, turned, visible[:, None], 1e-6)
    chunked = causal_linear_attention(*leaves, turned, no_decay, plain, 1e-6, None)
    state, steps = RecurrentState(), []
    for t in range(length):
        now = [x[:, :, t : t + 1] for x in leaves]
        now_turned = tuple(x[:, :, t : t + 1] for x in turned) if turn else tuple(now[:2])
        steps.append(
            causal_linear_attention(*now, now_turned, no_decay[:, :, :1], plain, 1e-6, state)  # type: ignore[arg-type]
        )
    dy = torch.randn_like(parallel)
    expected = [parallel, *torch.autograd.grad(parallel, leaves, dy, retain_graph=True)]
    for form in (chunked, torch.cat(steps, dim=2)):
        found = [form, *torch.autograd.grad(form, leaves, dy, retain_graph=True)]
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= 1e-11 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("turn", [False, True], ids=["plain", "rope"])
def test_an_encoder_of_packed_documents_is_each_alone(turn: bool) -> None:
    """Where there are no documents the sums are taken once; with them, pair by pair, to the same result."""
    module = randomized(LinearAttention(WIDTH, HEADS))
    x, lengths = torch.randn(2, 60, WIDTH, dtype=torch.float64), (30, 1, 29)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, -1)
    options = {"position": RotaryPosition()} if turn else {}
    packed = module(x, context_of(Layout.of(documents, documents=documents), False, **options))
    for part, own in zip(packed.split(lengths, 1), x.split(lengths, 1), strict=True):
        alone = module(own, context_of(Layout.of(documents[:, : own.shape[1]]), False, **options))
        assert (part - alone).abs().max() <= 1e-12
    q, k, v = (torch.rand(2, 3, 9, 6, dtype=torch.float64) for _ in range(3))
    once = full_linear_attention(q, k, v, (q, k), Segments(None, None), 1e-6)
    assert (once - parallel_linear_attention(q, k, v, (q, k), None, 1e-6)).abs().max() <= 1e-13


class Biased(Position):
    def bias(self, queries: Layout, keys: Layout) -> torch.Tensor:
        return torch.zeros(1, 1, queries.positions.shape[1], keys.positions.shape[1])


def test_what_would_have_no_effect_is_refused() -> None:
    module, x = LinearAttention(8, 2), torch.randn(1, 4, 8)
    layout = Layout.of(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(
        ValueError, match="no scores to add a bias to, so Biased would have no effect; use rot"
    ):
        module(x, context_of(layout, position=Biased()))
    context = context_of(layout)
    object.__setattr__(context, "mask", Mask(causal=True, window=2))
    with pytest.raises(
        ValueError, match="cannot forget beyond a window, but the mask has window=2; use slid"
    ):
        module(x, context)
    with pytest.raises(ValueError, match="d_model 8 cannot be split into n_heads 3.*nearest .* is 2"):
        LinearAttentionConfig(3).build(8)


def kinds(config: Any) -> list[str]:
    return [block.mixer.kind for block in config.blocks]


def test_the_enhancement_replaces_self_attention_only() -> None:
    changed = enhance(transformer(100, 16, n_heads=4, n_layers=2), linear_attention())
    assert {block.mixer for stack in (changed.encoder, changed.decoder) for block in stack.blocks} == {
        LinearAttentionConfig(4, bias=False)
    }
    assert isinstance(changed.decoder.blocks[0].cross_attention, CrossAttentionConfig)  # type: ignore[attr-defined]
    model = gpt(vocab_size=100, d_model=16, n_heads=4, n_layers=2)
    bias = model.stack.blocks[0].mixer.bias  # type: ignore[attr-defined]
    assert enhance(model, linear_attention()).stack.blocks[0].mixer == LinearAttentionConfig(4, bias)  # type: ignore[attr-defined]
    windows = enhance(model, sliding_window(8))
    assert enhance(windows, linear_attention()) == windows
    assert linear_attention()(GroupedQueryAttentionConfig(4, 2, bias=True)) == LinearAttentionConfig(4, True)
    assert linear_attention()(MultiHeadAttentionConfig(2)) == LinearAttentionConfig(2)


def test_the_state_does_not_grow() -> None:
    """e × (e + 1) numbers for each head, whatever came before."""
    module = LinearAttention(WIDTH, HEADS)
    state = module.initial_state()
    sizes = set()
    for length in (5, 1, 64, 1, 200):
        layout = Layout(torch.arange(length)[None])
        module(torch.randn(2, length, WIDTH), context_of(layout), state)
        sizes.add(sum(x.nbytes for x in state.tensors.values()))
    assert sizes == {2 * HEADS * 4 * 5 * 4}
