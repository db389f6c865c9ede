"""FlashAttention: what it keeps, what it skips, and that dropout, precision and compilation are handled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.enhancements.test_kernels import KINDS, GivenBias, case
from transformer.base.sockets import NO_POSITION, Layout, Mask, Pairs, Scoring
from transformer.enhancements import bytes_moved, flash_attention, naive_attention
from transformer.enhancements.attention.tiles import spans, tiles_of


def causal(length: int, window: int | None = None) -> Pairs:
    layout = Layout.of(torch.zeros(1, length).long())
    return Pairs(layout, layout, Mask(causal=True, window=window), NO_POSITION)


def drawn(*shape: int, count: int = 3) -> list[Tensor]:
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(count)]


# ---------------------------------------------------------------- memory


def bytes_kept(length: int) -> int:
    """Bytes of all distinct tensors that the forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    q, k, v = drawn(1, 2, length, 8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        flash_attention(q, k, v, causal(length), Scoring(0.3, soft_cap=2.0, sinks=torch.zeros(2)))
    return sum(kept.values())


def test_what_is_kept_grows_as_the_length() -> None:
    """Queries, keys, values and output, 8 wide, and L: 33 numbers a token and head, and never t × t of them."""
    assert bytes_kept(512) == 512 * 2 * 33 * 8 + 2 * 4
    assert bytes_kept(1024) == 1024 * 2 * 33 * 8 + 2 * 4


def test_no_tensor_as_large_as_the_scores_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, Tensor) else 0)
            return out

    q, k, v = drawn(1, 2, 700, 4)
    with Watch():
        flash_attention(q, k, v, causal(700), Scoring(0.3)).sum().backward()
    assert 2 * 128 * 256 <= largest <= 2 * 700 * 256 < 2 * 700 * 700
    assert all(x.grad is not None for x in (q, k, v))


def test_the_count_of_bytes() -> None:
    """By hand for 4 queries, 6 keys, width 2, tiles of 2 × 3, entries of 2 bytes."""
    traffic = bytes_moved(4, 6, 2, rows=2, columns=3, element=2)
    # plain: Q, K, write S; read S, write P; read P, V, write O
    assert traffic.plain == 2 * (8 + 12 + 24 + 24 + 24 + 24 + 12 + 8)
    # tiled: Q and O once, K and V for each of 2 blocks of queries, L in 4 bytes
    assert traffic.tiled == 2 * (8 + 8 + 2 * (12 + 12)) + 4 * 4
    # fast: a block of Q and one of K and of V; a tile of scores, a block of output, m and l
    assert traffic.fast == 2 * (4 + 6 + 6) + 4 * (6 + 4 + 4)
    short, tall = (bytes_moved(4096, 4096, 64, rows=rows) for rows in (128, 256))
    assert short.plain > 3.9 * short.tiled and tall.tiled < 0.6 * short.tiled


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("length", [1, 7, 64, 101])
def test_tiles_are_skipped_or_whole_only_where_they_are(kind: str, window: int | None, length: int) -> None:
    given = case(kind, length)
    mask = given.mask if window is None else replace(given.mask, window=window)
    pairs = Pairs(given.queries, given.keys, mask, NO_POSITION)
    seen = mask.visible(given.queries, given.keys)
    t, s = given.queries.positions.shape[1], length
    seen = torch.ones(1, t, s).bool() if seen is None else seen
    visited = torch.zeros(t, s).bool()
    for queries in spans(t, 8):
        for tile in tiles_of(pairs, queries, 4):
            visited[tile.queries, tile.keys] = True
            assert not tile.whole or seen[:, tile.queries, tile.keys].all()
    assert not (seen & ~visited).any()


def test_half_the_tiles_of_a_triangle_and_a_band_of_a_window_are_computed() -> None:
    def tiles(pairs: Pairs) -> list:
        return [tile for queries in spans(64, 8) for tile in tiles_of(pairs, queries, 8)]

    assert len(tiles(causal(64))) == 8 * 9 / 2
    assert sum(tile.whole for tile in tiles(causal(64))) == 8 * 7 / 2
    assert len(tiles(causal(64, window=8))) == 8 + 7
    layout = Layout.of(torch.zeros(1, 64).long(), documents=(torch.arange(64) // 16)[None])
    assert len(tiles(Pairs(layout, layout, Mask(causal=True), NO_POSITION))) == 4 * 3
    real = Layout.of(torch.zeros(1, 64).long(), (torch.arange(64) < 20)[None])
    assert len(tiles(Pairs(real, real, Mask(), NO_POSITION))) == 8 * 3


def test_new_queries_against_cached_keys_see_the_last_positions() -> None:
    """The trap of a mask aligned to the top left corner: 3 queries after 61 cached keys see all keys but 2, 1, 0."""
    given, last = causal(64), torch.arange(61, 64)[None]
    pairs = Pairs(given.queries.select(last), given.keys, Mask(causal=True), NO_POSITION)
    q, k, v = drawn(1, 2, 64, 8)
    whole = flash_attention(q, k, v, given, Scoring(0.3), rows=16, columns=16)
    some = flash_attention(q[:, :, 61:], k, v, pairs, Scoring(0.3), rows=16, columns=16)
    torch.testing.assert_close(some, whole[:, :, 61:], rtol=0, atol=1e-14)


# ---------------------------------------------------------------- dropout, precision, derivatives


def test_dropout_drops_the_same_weights_in_both_passes() -> None:
    """With the weights' seed held fixed, autograd agrees with finite differences."""
    q, k, v = drawn(1, 4, 9, 3)
    k, v = k[:, :2].detach().requires_grad_(), v[:, :2].detach().requires_grad_()

    def attend(*given: Tensor) -> Tensor:
        torch.manual_seed(5)
        q, k, v, sinks, bias = given
        pairs = Pairs(causal(9).queries, causal(9).keys, Mask(causal=True), GivenBias(bias))
        return flash_attention(q, k, v, pairs, Scoring(0.4, 0.3, 1.5, sinks), rows=4, columns=2)

    extra = (torch.randn(4).double().requires_grad_(), torch.randn(1, 1, 9, 9).double().requires_grad_())
    assert torch.autograd.gradcheck(attend, (q, k, v, *extra), fast_mode=True)


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    layout = Layout.of(torch.zeros(64, 40).long())
    pairs = Pairs(layout, layout, Mask(causal=True), NO_POSITION)
    q = torch.zeros(64, 4, 40, 8)
    out = flash_attention(q, q, torch.ones_like(q), pairs, Scoring(1.0, 0.25), rows=16, columns=16)
    assert abs(out.mean().item() - 1) < 0.02
    kept = out[:, :, 0, 0] * 0.75  # the first query has one key: kept or not
    assert set(kept.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert abs(kept.mean().item() - 0.75) < 0.12
    assert not torch.equal(flash_attention(q, q, torch.ones_like(q), pairs, Scoring(1.0, 0.25)), out)


def test_under_autocast_the_result_is_as_precise_as_the_products() -> None:
    q, k, v = (torch.randn(1, 2, 50, 8, requires_grad=True) for _ in range(3))
    pairs = causal(50)
    with torch.autocast("cpu", torch.bfloat16):
        out, reference = (f(q, k, v, pairs, Scoring(0.3)) for f in (flash_attention, naive_attention))
    assert out.dtype == reference.dtype == torch.bfloat16
    torch.testing.assert_close(out, reference, rtol=0, atol=0.03)
    out.sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32


def test_a_second_derivative_is_refused() -> None:
    q, k, v = drawn(1, 1, 5, 2)
    out = flash_attention(q, k, v, causal(5), Scoring(0.3))
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_only_what_is_asked_for_is_differentiated() -> None:
    q, k, v = (x.detach() for x in drawn(1, 2, 9, 4))
    v.requires_grad_()
    flash_attention(q, k, v, causal(9), Scoring(0.3)).sum().backward()
    assert q.grad is None and k.grad is None and v.grad is not None
