"""Latent and differential attention against definitions in NumPy, and what each is for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests import references
from tests.references import Array
from transformer.base.attention import KeyValueCache
from transformer.base.sockets import Context, Execution, Kernel, Layout, Mask
from transformer.enhancements import (
    differential,
    enhance,
    multi_head_latent,
    naive_attention,
    rope,
    sdpa_attention,
)
from transformer.enhancements.attention.differential import DifferentialAttentionConfig
from transformer.enhancements.attention.multi_head_latent import MultiHeadLatentAttentionConfig
from transformer.enhancements.position.rope import RotaryPosition
from transformer.models import build, gpt

pytestmark = pytest.mark.shapes_unchecked

WIDTH, LENGTHS = 48, (70, 33, 1)
LATENT = {
    "latent": MultiHeadLatentAttentionConfig(12, 10, None, d_content=5, d_rotary=4, d_value=3),
    "both latent": MultiHeadLatentAttentionConfig(12, 10, 7, d_content=5, d_rotary=4, d_value=3),
}
DIFFERENTIAL = DifferentialAttentionConfig(12, 0.35, bias=True)


def latent(x: Array, w: dict[str, Array], config: Any, seen: Any, positions: Array) -> Array:
    down = x
    if config.q_rank is not None:
        down, _ = references.rms_norm(x @ w["q_down_proj.weight"].T, w["q_norm.weight"], 1e-6)
    c, _ = references.rms_norm(x @ w["kv_down_proj.weight"].T, w["kv_norm.weight"], 1e-6)
    q = (down @ w["q_up_proj.weight"].T).reshape(*x.shape[:2], config.n_heads, -1)
    k = (c @ w["k_up_proj.weight"].T).reshape(*x.shape[:2], config.n_heads, -1)
    v = (c @ w["v_up_proj.weight"].T).reshape(*x.shape[:2], config.n_heads, -1)
    shared, e = x @ w["k_rotary_proj.weight"].T, config.d_content
    out = np.zeros_like(v)
    for b in range(len(x)):
        turned = references.turn(shared[b], positions[b], 10000.0)
        for h in range(config.n_heads):
            query = np.concatenate(
                [q[b, :, h, :e], references.turn(q[b, :, h, e:], positions[b], 10000.0)], -1
            )
            key = np.concatenate([k[b, :, h], turned], -1)
            out[b, :, h] = references.attend(query, key, v[b, :, h], seen[b])[0]
    return out.reshape(*x.shape[:2], -1) @ w["out_proj.weight"].T


def difference(x: Array, w: dict[str, Array], config: Any, seen: Any, positions: Array) -> Array:
    h = config.n_heads
    flat = {n: references.linear(x, w[f"{n}_proj.weight"], w[f"{n}_proj.bias"]) for n in "qkv"}
    q, k = (flat[n].reshape(*x.shape[:2], h, 2, -1) for n in "qk")
    v = flat["v"].reshape(*x.shape[:2], h, -1)
    first, second = np.exp((w["lambda_q"] * w["lambda_k"]).sum(-1))
    out = np.zeros_like(v)
    for b in range(len(x)):
        for i in range(h):
            maps = []
            for m in range(2):
                turned = [references.turn(y[b, :, i, m], positions[b], 10000.0) for y in (q, k)]
                maps.append(references.attend(*turned, np.eye(x.shape[1]), seen[b])[0])
            mixed = (maps[0] - (first - second + config.lambda_init) * maps[1]) @ v[b, :, i]
            out[b, :, i] = (1 - config.lambda_init) * references.rms_norm(mixed, w["norm.weight"], 1e-5)[0]
    return references.linear(out.reshape(*x.shape[:2], -1), w["out_proj.weight"], w["out_proj.bias"])


CASES: dict[str, Any] = {name: (config, latent) for name, config in LATENT.items()}
CASES["differential"] = (DIFFERENTIAL, difference)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", [naive_attention, sdpa_attention])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
def test_the_layer_is_its_definition(name: str, kernel: Kernel, dtype: torch.dtype, tolerance: float) -> None:
    """Values entry by entry; gradients as slopes of the definition along a random direction of everything."""
    config, define = CASES[name]
    module = config.build(WIDTH).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5 + 0.1)
    x = torch.randn(3, 70, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    real = torch.arange(70) < torch.tensor(LENGTHS)[:, None]
    layout = Layout.of(real.long(), real)
    positions = layout.positions.double().numpy()
    seen = (positions[:, :, None] >= positions[:, None, :]) & real.numpy()[:, None, :]
    out = module(x, Context(layout, Mask(causal=True), Execution(kernel), RotaryPosition()))
    at = {"x": x, **dict(module.named_parameters())}
    values = {n: p.detach().double().numpy() for n, p in at.items()}

    def defined(values: dict[str, Array]) -> Array:
        return define(values["x"], values, config, seen, positions)

    expected = defined(values)
    assert np.abs(out.detach().double().numpy() - expected).max() <= tolerance * max(
        1, np.abs(expected).max()
    )
    slope = torch.randn_like(out) / 70
    out.backward(slope)
    if dtype == torch.float64:
        rng, step = np.random.default_rng(0), 1e-5
        for only in at:  # each input and parameter by itself, so that none can hide behind another
            direction = rng.normal(size=values[only].shape)
            ahead, behind = ({**values, only: values[only] + s * step * direction} for s in (1, -1))
            change = ((defined(ahead) - defined(behind)) * slope.numpy()).sum() / (2 * step)
            grad = at[only].grad
            assert grad is not None
            found = (grad.numpy() * direction).sum()
            assert abs(found - change) <= 1e-7 * max(1.0, abs(change)), f"{only}: {found} {change}"


def test_a_latent_cache_holds_the_latents_alone() -> None:
    config = enhance(
        gpt(11, 24, 4, 1, max_seq_len=99, dropout=0.0), rope(), multi_head_latent(6, None, 4, 2, 4)
    )
    model = build(config).double().eval()
    tokens = torch.randint(11, (2, 70))
    state = model.initial_state()
    whole = model(tokens)
    parts = [
        model.decode(tokens[:, :64], state),
        *(model.decode(tokens[:, i : i + 1], state) for i in range(64, 70)),
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    cache = state.blocks[0].sublayers["mixer"]
    assert isinstance(cache, KeyValueCache) and cache.keys is not None and cache.values is not None
    assert cache.keys.numel() + cache.values.numel() == 2 * 70 * (6 + 2)


def test_differential_attention_has_the_parameters_of_multi_head_attention() -> None:
    plain, changed = gpt(11, 48, 12, 3), enhance(gpt(11, 48, 12, 3), differential())
    before, after = (build(config) for config in (plain, changed))
    extra = sum(p.numel() for p in after.parameters()) - sum(p.numel() for p in before.parameters())
    assert extra == 3 * (4 * 4 + 8)  # λ's four vectors and the norm's gain
    starts = [block.mixer.lambda_init for block in changed.stack.blocks]
    assert starts == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6)])
    with pytest.raises(ValueError, match=r"^d_model 20 cannot be split into n_heads 4 pairs .* it can is 5$"):
        DifferentialAttentionConfig(4).build(20)
