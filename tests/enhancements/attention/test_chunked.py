"""Memory-efficient attention: O(√n) beside inputs and output, and an ordinary graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.enhancements.attention.test_flash import causal, drawn
from transformer.base.sockets import NO_POSITION, Layout, Mask, Pairs, Scoring
from transformer.enhancements import chunked_attention


def bytes_kept(length: int) -> int:
    """Bytes that the forward pass keeps beside queries, keys and values."""
    kept: dict[int, int] = {}
    q, k, v = drawn(1, 2, length, 8)
    given = {x.untyped_storage().data_ptr() for x in (q, k, v)}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        chunked_attention(q, k, v, causal(length), Scoring(0.3))
    return sum(kept.values())


def largest_made(length: int) -> int:
    """The largest tensor of both passes, in numbers."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, Tensor) else 0)
            return out

    q, k, v = drawn(1, 2, length, 4)
    with Watch():
        chunked_attention(q, k, v, causal(length), Scoring(0.3)).sum().backward()
    return largest


def test_nothing_is_kept_beside_the_inputs() -> None:
    assert bytes_kept(300) == bytes_kept(600) == 0


def test_scores_are_made_for_chunks_of_the_root_of_the_length() -> None:
    assert largest_made(400) == 2 * 128 * 40  # 128 queries by √(400 · 4) keys
    assert largest_made(900) == 2 * 128 * 60  # queries and keys themselves are 2 × 900 × 4


def test_it_can_be_differentiated_twice() -> None:
    q, k, v = drawn(1, 4, 7, 3)
    k, v = k[:, :2].detach().requires_grad_(), v[:, :2].detach().requires_grad_()
    sinks = torch.randn(4).double().requires_grad_()

    def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        return chunked_attention(q, k, v, causal(7), Scoring(0.4, 0.0, 1.5, sinks), rows=3, columns=2)

    assert torch.autograd.gradcheck(attend, (q, k, v, sinks), fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, (q, k, v, sinks), fast_mode=True)


def test_dropout_drops_the_same_weights_in_both_passes() -> None:
    q, k, v = drawn(1, 2, 9, 3)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(5)
        return chunked_attention(q, k, v, causal(9), Scoring(0.4, 0.3), rows=4, columns=2)

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    layout = Layout.of(torch.zeros(64, 40).long())
    pairs = Pairs(layout, layout, Mask(causal=True), NO_POSITION)
    q = torch.zeros(64, 4, 40, 8)
    out = chunked_attention(q, q, torch.ones_like(q), pairs, Scoring(1.0, 0.25))
    assert abs(out.mean().item() - 1) < 0.02
    kept = out[:, :, 0, 0] * 0.75
    assert set(kept.round(decimals=5).unique().tolist()) == {0.0, 1.0}


def test_under_autocast_the_result_is_as_precise_as_the_products() -> None:
    q, k, v = (torch.randn(1, 2, 50, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = chunked_attention(q, k, v, causal(50), Scoring(0.3))
    assert out.dtype == torch.bfloat16
    exact = chunked_attention(q, k, v, causal(50), Scoring(0.3))
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.03)
    out.sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32


@pytest.mark.parametrize("columns", [1, 3, 64])
def test_the_size_of_a_chunk_changes_nothing(columns: int) -> None:
    q, k, v = drawn(1, 2, 20, 4)
    once = chunked_attention(q, k, v, causal(20), Scoring(0.3), rows=20, columns=20)
    torch.testing.assert_close(
        chunked_attention(q, k, v, causal(20), Scoring(0.3), rows=7, columns=columns),
        once,
        rtol=0,
        atol=1e-14,
    )
