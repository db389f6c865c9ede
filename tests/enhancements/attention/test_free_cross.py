"""Cross-attention of free width and scale against its definition, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.references import Array, linear, linear_gradients
from transformer.base.attention import CrossAttentionConfig
from transformer.base.sockets import Context, Execution, Kernel, Layout, Mask, Memory
from transformer.enhancements import naive_attention, sdpa_attention
from transformer.enhancements.attention.free_cross import FreeCrossAttentionConfig

WIDTH, HEADS, TARGETS, SOURCES = 20, 12, 64, (70, 33)


def definition(x: Array, memory: Array, w: dict[str, Array], scale: float) -> tuple[Array, Any]:
    """Row by row and head by head, over the real keys only; and the gradient worked out by hand."""
    given = {"q": x, "k": memory, "v": memory}
    flat = {n: linear(y, w[f"{n}_proj.weight"], w[f"{n}_proj.bias"]) for n, y in given.items()}
    e = flat["q"].shape[-1] // HEADS
    mixed, kept = np.zeros_like(flat["q"]), {}
    for b, n_keys in enumerate(SOURCES):
        for h in range(HEADS):
            at = slice(h * e, (h + 1) * e)
            scores = flat["q"][b, :, at] @ flat["k"][b, :n_keys, at].T * scale
            powers = np.exp(scores - scores.max(1, keepdims=True))
            kept[b, h] = powers / powers.sum(1, keepdims=True)
            mixed[b, :, at] = kept[b, h] @ flat["v"][b, :n_keys, at]

    def backward(dy: Array) -> dict[str, Array]:
        d_mixed, dw, db = linear_gradients(mixed, w["out_proj.weight"], dy)
        found = {"out_proj.weight": dw, "out_proj.bias": db}
        d = {n: np.zeros_like(y) for n, y in flat.items()}
        for (b, h), weights in kept.items():
            at, n_keys = slice(h * e, (h + 1) * e), SOURCES[b]
            d_weights = d_mixed[b, :, at] @ flat["v"][b, :n_keys, at].T
            d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdims=True)) * scale
            d["q"][b, :, at] = d_scores @ flat["k"][b, :n_keys, at]
            d["k"][b, :n_keys, at] = d_scores.T @ flat["q"][b, :, at]
            d["v"][b, :n_keys, at] = weights.T @ d_mixed[b, :, at]
        inputs = {"x": np.zeros_like(x), "memory": np.zeros_like(memory)}
        for n, y in given.items():
            dy_in, dw, db = linear_gradients(y, w[f"{n}_proj.weight"], d[n])
            inputs["x" if n == "q" else "memory"] += dy_in
            found |= {f"{n}_proj.weight": dw, f"{n}_proj.bias": db}
        return found | inputs

    return linear(mixed, w["out_proj.weight"], w["out_proj.bias"]), backward


@pytest.mark.parametrize("kernel", [naive_attention, sdpa_attention])
@pytest.mark.parametrize("scale", [1.0, 0.3, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_it_is_its_definition(
    kernel: Kernel, scale: float | None, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    config = FreeCrossAttentionConfig(HEADS, bias=True, d_head=7, scale=scale)
    layer = config.build(WIDTH).to(dtype)
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.2)
    x = torch.randn(2, TARGETS, WIDTH, dtype=dtype, requires_grad=True)
    hidden = torch.randn(2, max(SOURCES), WIDTH, dtype=dtype, requires_grad=True)
    real = torch.arange(max(SOURCES)) < torch.tensor(SOURCES)[:, None]
    memory = Memory(hidden, Layout.of(real.long(), real))
    context = Context(
        Layout.of(torch.zeros(2, TARGETS, dtype=torch.long)),
        Mask(causal=True),
        Execution(kernel),
        memory=memory,
    )
    y = layer(x, context)
    slope = torch.randn(y.shape, dtype=dtype)
    (y * slope).sum().backward()
    w = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
    known = 1 / np.sqrt(7) if scale is None else scale
    value, back = definition(x.detach().double().numpy(), hidden.detach().double().numpy(), w, known)
    np.testing.assert_allclose(y.detach().double().numpy(), value, rtol=0, atol=tolerance * 10)
    expected = back(slope.double().numpy())
    got = {"x": x.grad, "memory": hidden.grad, **{n: p.grad for n, p in layer.named_parameters()}}
    for name, gradient in got.items():
        assert gradient is not None
        bound = tolerance * max(1.0, np.abs(expected[name]).max())
        np.testing.assert_allclose(
            gradient.double().numpy(), expected[name], rtol=0, atol=bound, err_msg=name
        )


def test_with_the_papers_width_it_is_the_papers() -> None:
    paper, free = (c.build(24) for c in (CrossAttentionConfig(3), FreeCrossAttentionConfig(3, d_head=8)))
    free.load_state_dict(paper.state_dict())
    assert free.scale == paper.scale
    assert [p.shape for p in free.parameters()] == [p.shape for p in paper.parameters()]
