"""Independent definitions in float64 NumPy, each with its gradient worked out by hand.

Every function returns its value and a function from the gradient of the value to the gradients of the inputs.
Nothing here is shared with the package: where the package splits, this loops or uses complex numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Backward = Callable[[Array], dict[str, Any]]


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """y = x Wᵀ + b, the matrix stored (out, in)."""
    return x @ w.T + (0 if b is None else b)


def linear_gradients(x: Array, w: Array, dy: Array) -> tuple[Array, Array, Array]:
    """The gradients by x, W and b."""
    inputs, outputs = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ w, outputs.T @ inputs, outputs.sum(0)


def sinusoids(length: int, d_model: int) -> Array:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos of the same (1706.03762 §3.5), entry by entry."""
    table = np.zeros((length, d_model))
    for position in range(length):
        for j in range(d_model):
            angle = position / math.pow(10000.0, 2 * (j // 2) / d_model)
            table[position, j] = math.cos(angle) if j % 2 else math.sin(angle)
    return table


def layer_norm(x: Array, gain: Array, shift: Array, epsilon: float) -> tuple[Array, Backward]:
    """γ (x − μ)/√(σ² + ε) + β with the variance divided by d."""
    d = x.shape[-1]
    mean = x.sum(-1, keepdims=True) / d
    variance = ((x - mean) ** 2).sum(-1, keepdims=True) / d
    deviation = np.sqrt(variance + epsilon)
    normed = (x - mean) / deviation

    def backward(dy: Array) -> dict[str, Array]:
        dn = dy * gain
        mean_dn = dn.sum(-1, keepdims=True) / d
        along = normed * (dn * normed).sum(-1, keepdims=True) / d
        axes = tuple(range(dy.ndim - 1))
        return {
            "x": (dn - mean_dn - along) / deviation,
            "weight": (dy * normed).sum(axes),
            "bias": dy.sum(axes),
        }

    return gain * normed + shift, backward


def rms_norm(x: Array, gain: Array, epsilon: float) -> tuple[Array, Backward]:
    """x / √(mean x² + ε) · g."""
    d = x.shape[-1]
    root = np.sqrt((x * x).sum(-1, keepdims=True) / d + epsilon)

    def backward(dy: Array) -> dict[str, Array]:
        dn = dy * gain
        dx = dn / root - x * (dn * x).sum(-1, keepdims=True) / (d * root**3)
        return {"x": dx, "weight": (dy * x / root).sum(tuple(range(dy.ndim - 1)))}

    return gain * x / root, backward


def relu(z: Array) -> tuple[Array, Array]:
    """max(0, z) and its derivative."""
    return np.where(z > 0, z, 0.0), np.where(z > 0, 1.0, 0.0)


def gelu_erf(z: Array) -> tuple[Array, Array]:
    """z Φ(z), whose derivative is Φ(z) + z φ(z)."""
    cumulative = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    return z * cumulative, cumulative + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def gelu_tanh(z: Array) -> tuple[Array, Array]:
    """z/2 (1 + tanh u), u = √(2/π)(z + 0.044715 z³); the derivative by the product rule."""
    c = math.sqrt(2 / math.pi)
    u = np.tanh(c * (z + 0.044715 * z**3))
    return 0.5 * z * (1 + u), 0.5 * (1 + u) + 0.5 * z * (1 - u * u) * c * (1 + 3 * 0.044715 * z * z)


def feed_forward(
    x: Array, weights: dict[str, Array], activation: Callable[[Array], tuple[Array, Array]]
) -> tuple[Array, Backward]:
    """activation(x W_1 + b_1) W_2 + b_2."""
    w1, w2 = weights["up_proj.weight"], weights["down_proj.weight"]
    z = linear(x, w1, weights["up_proj.bias"])
    inner, slope = activation(z)

    def backward(dy: Array) -> dict[str, Array]:
        d_inner, dw2, db2 = linear_gradients(inner, w2, dy)
        dx, dw1, db1 = linear_gradients(x, w1, d_inner * slope)
        names = ("up_proj.weight", "up_proj.bias", "down_proj.weight", "down_proj.bias")
        return {"x": dx, **dict(zip(names, (dw1, db1, dw2, db2), strict=True))}

    return linear(inner, w2, weights["down_proj.bias"]), backward


def turn(x: Array, positions: Array, base: float, sign: int = 1) -> Array:
    """Rotary position by complex numbers: (x_j + i x_{j+e/2}) · exp(i n θ_j), θ_j = base^(−2j/e); x is (…, t, e)."""
    half = x.shape[-1] // 2
    theta = np.array([base ** (-2 * j / x.shape[-1]) for j in range(half)])
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(sign * 1j * positions[..., :, None] * theta)
    return np.concatenate([z.real, z.imag], axis=-1)


def attend(
    q: Array, k: Array, v: Array, visible: NDArray[np.bool_], bias: Array | None = None
) -> tuple[Array, Backward]:
    """One head of one row: softmax(q kᵀ/√e + bias) v over the visible keys; zeros for a query that sees none."""
    scale = 1 / math.sqrt(q.shape[-1])
    scores = q @ k.T * scale + (0 if bias is None else bias)
    weights = np.zeros_like(scores)
    for t in range(len(q)):  # query by query, over the visible keys only: no infinity enters
        seen = np.flatnonzero(visible[t])
        if len(seen):
            powers = np.exp(scores[t, seen] - scores[t, seen].max())
            weights[t, seen] = powers / powers.sum()

    def backward(dy: Array) -> dict[str, Array]:
        d_weights = dy @ v.T
        d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
        return {"q": d_scores @ k * scale, "k": d_scores.T @ q * scale, "v": weights.T @ dy, "bias": d_scores}

    return weights @ v, backward


def multi_head_attention(
    x: Array,
    memory: Array,
    weights: dict[str, Array],
    n_heads: int,
    visible: NDArray[np.bool_],
    positions: Array | None = None,
    base: float = 10000.0,
) -> tuple[Array, Backward]:
    """Concat(head_1 … head_h) W^O; row by row and head by head. `positions` (b, t) turns queries and keys (RoPE)."""
    batch, d_model = x.shape[0], x.shape[2]
    e = d_model // n_heads
    sources = {"q": x, "k": memory, "v": memory}
    flat = {n: linear(s, weights[f"{n}_proj.weight"], weights[f"{n}_proj.bias"]) for n, s in sources.items()}
    mixed = np.zeros((batch, x.shape[1], d_model))
    backwards: dict[tuple[int, int], Backward] = {}

    def rotate(y: Array, row: int, sign: int = 1) -> Array:
        return y if positions is None else turn(y, positions[row], base, sign)

    for b in range(batch):
        for h in range(n_heads):
            part = slice(h * e, (h + 1) * e)
            q, k = rotate(flat["q"][b, :, part], b), rotate(flat["k"][b, :, part], b)
            mixed[b, :, part], backwards[b, h] = attend(q, k, flat["v"][b, :, part], visible[b])

    def backward(dy: Array) -> dict[str, Array]:
        d_mixed, dw, db = linear_gradients(mixed, weights["out_proj.weight"], dy)
        gradients = {"out_proj.weight": dw, "out_proj.bias": db}
        d_flat = {n: np.zeros_like(y) for n, y in flat.items()}
        for (b, h), head in backwards.items():
            part = slice(h * e, (h + 1) * e)
            d = head(d_mixed[b, :, part])
            d_flat["q"][b, :, part] = rotate(d["q"], b, -1)
            d_flat["k"][b, :, part] = rotate(d["k"], b, -1)
            d_flat["v"][b, :, part] = d["v"]
        d_sources = {"x": np.zeros_like(x), "memory": np.zeros_like(memory)}
        for n, s in sources.items():
            ds, dw, db = linear_gradients(s, weights[f"{n}_proj.weight"], d_flat[n])
            d_sources["x" if n == "q" else "memory"] += ds
            gradients |= {f"{n}_proj.weight": dw, f"{n}_proj.bias": db}
        return d_sources | gradients

    return linear(mixed, weights["out_proj.weight"], weights["out_proj.bias"]), backward
