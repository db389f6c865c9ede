"""The general attention and what it can have: grouped heads, QK-norm, soft cap, sinks, windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import references
from tests.references import Array
from transformer.base.attention import MultiHeadAttentionConfig
from transformer.base.sockets import Context, Execution, Kernel, Layout, Mask, Position
from transformer.enhancements import (
    attention_sinks,
    enhance,
    grouped_query,
    multi_query,
    naive_attention,
    pool_heads,
    qk_norm,
    sdpa_attention,
    sliding_window,
    soft_cap,
)
from transformer.enhancements.attention.grouped_query import (
    GroupedQueryAttention,
    GroupedQueryAttentionConfig,
)
from transformer.enhancements.attention.sliding_window import (
    SlidingWindowAttentionConfig,
    WindowCache,
)
from transformer.enhancements.normalization.rms_norm import RMSNormConfig
from transformer.enhancements.position.rope import RotaryPosition
from transformer.models import build, gpt, transformer

WIDTH, LENGTHS = 48, (70, 33, 1)


def attend(
    q: Array, k: Array, v: Array, seen: Any, scale: float, cap: float | None, sink: float | None
) -> tuple[Array, Any]:
    """One head of one row, query by query over its visible keys; with its gradient."""
    products = q @ k.T * scale
    scores = products if cap is None else cap * np.tanh(products / cap)
    slope = 1.0 if cap is None else 1 - (scores / cap) ** 2
    weights, sunk = np.zeros_like(scores), np.zeros(len(q))
    for t in range(len(q)):
        at = np.flatnonzero(seen[t])
        if not len(at):
            continue
        top = max(scores[t, at].max(), -np.inf if sink is None else sink)
        powers = np.exp(scores[t, at] - top)
        drain = 0.0 if sink is None else np.exp(sink - top)
        weights[t, at], sunk[t] = powers / (powers.sum() + drain), drain / (powers.sum() + drain)

    def backward(dy: Array) -> dict[str, Any]:
        d_weights = dy @ v.T
        mean = (d_weights * weights).sum(-1, keepdims=True)
        d_products = weights * (d_weights - mean) * slope
        return {
            "q": d_products @ k * scale,
            "k": d_products.T @ q * scale,
            "v": weights.T @ dy,
            "sink": -(sunk * mean[:, 0]).sum(),
        }

    return weights @ v, backward


def normalize(values: dict[str, Array], w: dict[str, Array], name: str) -> dict[str, Any]:
    """Normalize the queries and keys among `values`, if there are gains of this name; the ways back."""
    backs = {}
    for n in "qk":
        if f"{n}_{name}" in w:
            values[n], backs[n] = references.rms_norm(values[n], w[f"{n}_{name}"], 1e-6)
    return backs


def definition(x: Array, w: dict[str, Array], config: Any, seen: Any, positions: Array) -> tuple[Array, Any]:
    """The whole layer, row by row and head by head, with RoPE; and its gradient worked out by hand."""
    h, kv, e = config.n_heads, config.n_kv_heads or config.n_heads, config.head_width(WIDTH)
    scale = e**-0.5 if config.scale is None else config.scale
    flat = {n: references.linear(x, w[f"{n}_proj.weight"], w.get(f"{n}_proj.bias")) for n in "qkv"}
    joined_norms = normalize(flat, w, "norm.norm.weight")
    heads = {n: y.reshape(*y.shape[:2], -1, e) for n, y in flat.items()}
    norms = normalize(heads, w, "norm.weight")
    mixed, backs = np.zeros((*x.shape[:2], h, e)), {}
    for b in range(len(x)):
        for i in range(h):
            j = i * kv // h
            q, k = (
                references.turn(heads[n][b, :, m], positions[b], 10000.0) for n, m in (("q", i), ("k", j))
            )
            sink = w["sinks"][i] if "sinks" in w else None
            mixed[b, :, i], backs[b, i] = attend(
                q, k, heads["v"][b, :, j], seen[b], scale, config.soft_cap, sink
            )
    joined = mixed.reshape(*x.shape[:2], h * e)

    def backward(dy: Array) -> dict[str, Any]:
        d_mixed, dw, db = references.linear_gradients(joined, w["out_proj.weight"], dy)
        found: dict[str, Any] = {"out_proj.weight": dw, "out_proj.bias": db, "sinks": np.zeros(h)}
        d = {n: np.zeros_like(y) for n, y in heads.items()}
        for (b, i), back in backs.items():
            got, j = back(d_mixed.reshape(mixed.shape)[b, :, i]), i * kv // h
            d["q"][b, :, i] += references.turn(got["q"], positions[b], 10000.0, -1)
            d["k"][b, :, j] += references.turn(got["k"], positions[b], 10000.0, -1)
            d["v"][b, :, j] += got["v"]
            found["sinks"][i] += got["sink"]
        for n, back in norms.items():
            through = back(d[n])
            d[n], found[f"{n}_norm.weight"] = through["x"], through["weight"]
        found["x"] = np.zeros_like(x)
        for n, back in joined_norms.items():
            through = back(d[n].reshape(flat[n].shape))
            d[n], found[f"{n}_norm.norm.weight"] = through["x"], through["weight"]
        for n in "qkv":
            dx, dw, db = references.linear_gradients(x, w[f"{n}_proj.weight"], d[n].reshape(flat[n].shape))
            found["x"] += dx
            found |= {f"{n}_proj.weight": dw, f"{n}_proj.bias": db}
        return found

    return references.linear(joined, w["out_proj.weight"], w.get("out_proj.bias")), backward


FORMS = {
    "grouped": GroupedQueryAttentionConfig(12, 4, bias=True),
    "one": GroupedQueryAttentionConfig(12, 1, d_head=6, bias=True, out_bias=False, scale=0.4),
    "normed": GroupedQueryAttentionConfig(4, 2, qk_norm=RMSNormConfig()),
    "normed together": GroupedQueryAttentionConfig(12, 4, qk_norm=RMSNormConfig(), qk_norm_over="projection"),
    "capped": GroupedQueryAttentionConfig(4, soft_cap=0.7),
    "sunk": GroupedQueryAttentionConfig(4, 2, sinks=True),
    "window": SlidingWindowAttentionConfig(4, 2, window=9),
    "all": SlidingWindowAttentionConfig(
        12, 4, bias=True, qk_norm=RMSNormConfig(), soft_cap=1.3, sinks=True, window=17
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", [naive_attention, sdpa_attention])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
def test_the_layer_is_its_definition(form: str, kernel: Kernel, dtype: torch.dtype, tolerance: float) -> None:
    config = FORMS[form]
    module = config.build(WIDTH).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5 + 0.1)
    x = torch.randn(3, 70, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    real = torch.arange(70) < torch.tensor(LENGTHS)[:, None]
    layout = Layout.of(real.long(), real)
    positions = layout.positions.double().numpy()
    distance = positions[:, :, None] - positions[:, None, :]
    seen = (distance >= 0) & (distance < getattr(config, "window", 99)) & real.numpy()[:, None, :]
    weights = {name: p.detach().double().numpy() for name, p in module.named_parameters()}
    value, backward = definition(x.detach().double().numpy(), weights, config, seen, positions)
    out = module(x, Context(layout, Mask(causal=True), Execution(kernel), RotaryPosition()))
    slope = torch.randn_like(out) / 70
    out.backward(slope)
    found = backward(slope.double().numpy())
    actual = {"y": out, "x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}
    for name, ours in actual.items():
        theirs = value if name == "y" else found[name]
        assert ours is not None and np.abs(theirs).max() > 1e-5, name
        error = np.abs(ours.detach().double().numpy() - theirs).max()
        assert error <= tolerance * max(1.0, np.abs(theirs).max()), f"{name}: {error}"


def test_neighbouring_queries_share_a_head_of_keys() -> None:
    """Head i of 12 goes by key head ⌊i·4/12⌋; taking every fourth instead is a common mistake."""
    module = GroupedQueryAttentionConfig(12, 4).build(WIDTH)
    with torch.no_grad():
        module.out_proj.weight.copy_(torch.eye(WIDTH))
        module.v_proj.weight.zero_()[4:8] = 1.0  # the second key head alone has values
    layout = Layout.of(torch.zeros(1, 9).long())
    out = module(torch.rand(1, 9, WIDTH) + 0.5, Context(layout, Mask(True), Execution(naive_attention)))
    used = out.unflatten(-1, (12, 4)).abs().sum((0, 1, 3)) != 0
    assert used.nonzero().flatten().tolist() == [3, 4, 5]


def test_as_many_key_heads_as_queries_is_the_papers_attention() -> None:
    paper, general = MultiHeadAttentionConfig(4, bias=True), GroupedQueryAttentionConfig(4, bias=True)
    first, second = paper.build(WIDTH), general.build(WIDTH)
    second.load_state_dict(first.state_dict())
    layout = Layout.of(torch.zeros(2, 20).long())
    context = Context(layout, Mask(True), Execution(naive_attention), RotaryPosition())
    x = torch.randn(2, 20, WIDTH)
    assert torch.equal(first(x, context), second(x, context))


def test_pooled_heads_are_means_and_equal_heads_lose_nothing() -> None:
    dims: dict[str, Any] = {"vocab_size": 13, "d_model": 24, "n_heads": 6, "n_layers": 2, "dropout": 0.0}
    source = build(gpt(**dims)).double().eval()
    target = build(enhance(source.config, grouped_query(2))).double().eval()
    pool_heads(source, target)
    old, new = (m.stack.blocks[1].mixer.branch.v_proj for m in (source, target))
    heads = old.weight.view(6, 4, 24)
    torch.testing.assert_close(new.weight.view(2, 4, 24), torch.stack([heads[:3].mean(0), heads[3:].mean(0)]))
    tokens = torch.randint(13, (2, 30))
    assert not torch.allclose(source(tokens), target(tokens))
    with torch.no_grad():
        for block in source.stack.blocks:
            for proj in (block.mixer.branch.k_proj, block.mixer.branch.v_proj):
                proj.weight.view(6, 4, 24)[:] = proj.weight.view(6, 4, 24)[[0, 0, 0, 3, 3, 3]]
                proj.bias.view(6, 4)[:] = proj.bias.view(6, 4)[[0, 0, 0, 3, 3, 3]]
    pool_heads(source, target)
    torch.testing.assert_close(source(tokens), target(tokens), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"^stack.blocks.0.mixer.branch has other heads than the target"):
        pool_heads(build(gpt(**{**dims, "n_heads": 3})), target)


@pytest.mark.parametrize("window", [1, 2, 7, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_a_window_is_counted_in_positions(window: int, causal: bool) -> None:
    module = SlidingWindowAttentionConfig(2, window=window).build(8).double()
    layout = Layout.of(torch.zeros(1, 130).long())
    x = torch.randn(1, 130, 8, dtype=torch.float64, requires_grad=True)
    out = module(x, Context(layout, Mask(causal), Execution(naive_attention)))
    (gradient,) = torch.autograd.grad(out[0, 65].sum(), x)
    reached = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
    assert reached == list(range(max(0, 65 - window + 1), 66 if causal else min(130, 65 + window)))


@pytest.mark.parametrize("window", [1, 3, 16])
def test_a_windows_cache_stays_as_small_as_the_window(window: int) -> None:
    config = enhance(gpt(11, 16, 4, 2, max_seq_len=200, dropout=0.0), sliding_window(window))
    model = build(config).double().eval()
    tokens = torch.randint(11, (2, 120))
    whole, state = model(tokens), model.initial_state()
    out = [model.decode(tokens[:, :50], state)]  # the prompt runs past the window
    for at in range(50, 120):
        out.append(model.decode(tokens[:, at : at + 1], state))
        for block in state.blocks:
            cache = block.sublayers["mixer"]
            assert isinstance(cache, WindowCache) and cache.keys is not None
            assert cache.keys.shape[2] == window - 1
            assert cache.keys.untyped_storage().nbytes() <= 8 * 2 * 16 * max(50, 2 * window)
    torch.testing.assert_close(torch.cat(out, dim=1), whole, rtol=0, atol=1e-11)


def test_soft_caps_bound_scores_and_leave_small_ones() -> None:
    from transformer.enhancements.attention.soft_cap import cap_scores

    x = torch.linspace(-500, 500, 1001, dtype=torch.float64, requires_grad=True)
    y = cap_scores(x, 50.0)
    assert y.abs().max() <= 50 and abs(cap_scores(torch.tensor(1.0), 50.0).item() - 50 * np.tanh(0.02)) < 1e-6
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope[500] == 1


def test_enhancements_compose_on_one_attention_and_leave_cross_attention() -> None:
    config = enhance(transformer(9, 16, 4, 6), soft_cap(30.0), attention_sinks(), multi_query(), qk_norm())
    mixer = config.decoder.blocks[0].mixer
    assert mixer == GroupedQueryAttentionConfig(4, 1, qk_norm=RMSNormConfig(), soft_cap=30.0, sinks=True)
    assert (
        config.decoder.blocks[0].cross_attention == transformer(9, 16, 4, 6).decoder.blocks[0].cross_attention
    )
    local = enhance(config, sliding_window(8, every=3))
    kinds = [block.mixer.kind for block in local.decoder.blocks]
    assert kinds == ["sliding_window_attention"] * 2 + ["grouped_query_attention"] + kinds[:3]
    first = local.encoder.blocks[0].mixer
    assert replace(first, window=1) == SlidingWindowAttentionConfig(
        4, 1, qk_norm=RMSNormConfig(), soft_cap=30.0, sinks=True, window=1
    )
    assert enhance(gpt(n_heads=12), grouped_query()).stack.blocks[0].mixer.n_kv_heads == 3
    assert enhance(gpt(n_heads=1, d_model=8), grouped_query()).stack.blocks[0].mixer.n_kv_heads == 1


def test_heads_that_do_not_fit_are_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"n_heads 12 cannot be shared out to n_kv_heads 5 .* divides it is [46]$"
    ):
        GroupedQueryAttentionConfig(12, 5)
    with pytest.raises(
        ValueError, match=r"d_model 10 cannot be split into n_heads 4 .* is 5, or give d_head$"
    ):
        GroupedQueryAttentionConfig(4).build(10)
    with pytest.raises(
        ValueError, match=r"^every counts layers, from 1 on, got 0; 1 makes all of them local$"
    ):
        sliding_window(4, every=0)


def test_the_papers_kernel_refuses_what_it_does_not_know() -> None:
    from transformer.base import scaled_dot_product_attention

    module = GroupedQueryAttentionConfig(4, 2).build(16)
    layout = Layout.of(torch.zeros(1, 5).long())
    with pytest.raises(
        ValueError, match=r"^the paper's attention has no soft cap, no sinks and no shared keys; run"
    ):
        plain = scaled_dot_product_attention
        module(
            torch.randn(1, 5, 16), Context(layout, Mask(), Execution(kernel=_unchecked(plain)), Position())
        )


def _unchecked(kernel: Kernel) -> Kernel:
    """The kernel without the shape checks that tests put around it."""

    def call(q: Tensor, k: Tensor, v: Tensor, pairs: Any, scoring: Any) -> Tensor:
        return getattr(kernel, "__wrapped__", kernel)(q, k, v, pairs, scoring)

    return call


def test_the_general_attention_is_a_layer() -> None:
    assert isinstance(GroupedQueryAttentionConfig().build(64), GroupedQueryAttention)
