"""Position schemes in float64 NumPy, written from their equations, with gradients worked out by hand.

Nothing is shared with the package: where it works with tables and broadcasting, this loops over pairs of tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references import Array, Backward, linear, linear_gradients

Visible = NDArray[np.bool_]
Head = Callable[[int, int, Array, Array, Array], tuple[Array, Callable[[Array], dict[str, Array]]]]


def attention_layer(x: Array, weights: dict[str, Array], n_heads: int, head: Head) -> tuple[Array, Backward]:
    """Projections in and out around `head(row, h, q, k, v)`, whose other gradients are summed by name."""
    e = x.shape[2] // n_heads
    flat = {n: linear(x, weights[f"{n}_proj.weight"], weights[f"{n}_proj.bias"]) for n in "qkv"}
    mixed = np.zeros_like(x)
    backwards = {}
    for row in range(len(x)):
        for h in range(n_heads):
            part = slice(h * e, (h + 1) * e)
            mixed[row, :, part], backwards[row, h] = head(row, h, *(flat[n][row, :, part] for n in "qkv"))

    def backward(dy: Array) -> dict[str, Any]:
        d_mixed, dw, db = linear_gradients(mixed, weights["out_proj.weight"], dy)
        gradients: dict[str, Any] = {"out_proj.weight": dw, "out_proj.bias": db, "x": np.zeros_like(x)}
        d_flat = {n: np.zeros_like(y) for n, y in flat.items()}
        for (row, h), back in backwards.items():
            part = slice(h * e, (h + 1) * e)
            for name, value in back(d_mixed[row, :, part]).items():
                if name in d_flat:
                    d_flat[name][row, :, part] = value
                else:
                    gradients[name] = gradients.get(name, 0) + value
        for n in "qkv":
            dx, dw, db = linear_gradients(x, weights[f"{n}_proj.weight"], d_flat[n])
            gradients["x"] += dx
            gradients |= {f"{n}_proj.weight": dw, f"{n}_proj.bias": db}
        return gradients

    return linear(mixed, weights["out_proj.weight"], weights["out_proj.bias"]), backward


def softmax_over(scores: Array, visible: Visible) -> tuple[Array, Callable[[Array], Array]]:
    """Each row's softmax over what it sees, zeros if nothing; and from the weights' gradient to the scores'."""
    weights = np.zeros_like(scores)
    for t in range(len(scores)):
        seen = np.flatnonzero(visible[t])
        if len(seen):
            powers = np.exp(scores[t, seen] - scores[t, seen].max())
            weights[t, seen] = powers / powers.sum()
    return weights, lambda dw: weights * (dw - (dw * weights).sum(-1, keepdims=True))


def biased_head(
    q: Array, k: Array, v: Array, visible: Visible, bias: Array
) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
    """softmax(q kᵀ/√e + bias) v."""
    scale = 1 / math.sqrt(q.shape[-1])
    weights, to_scores = softmax_over(q @ k.T * scale + bias, visible)

    def backward(dy: Array) -> dict[str, Array]:
        ds = to_scores(dy @ v.T)
        return {"q": ds @ k * scale, "k": ds.T @ q * scale, "v": weights.T @ dy, "bias": ds}

    return weights @ v, backward


def linear_map_head(
    q: Array, k: Array, v: Array, visible: Visible, of_q: Array, of_k: Array
) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
    """Attention between M_n q and N_m k, where each position has matrices M_n and N_m (rotary schemes)."""
    turned = [np.einsum("tij,tj->ti", m, y) for m, y in ((of_q, q), (of_k, k))]
    value, back = biased_head(*turned, v, visible, np.zeros((len(q), len(k))))

    def backward(dy: Array) -> dict[str, Array]:
        d = back(dy)
        dq, dk = (np.einsum("tij,ti->tj", m, d[n]) for n, m in (("q", of_q), ("k", of_k)))
        return {"q": dq, "k": dk, "v": d["v"]}

    return value, backward


def rotations(
    positions: Array, e: int, theta: Array, pairs: list[tuple[int, int]], size: Array | float = 1.0
) -> Array:
    """The matrix of each position: pair (a, b) turned by n·θ_j and multiplied by `size` (t, p), the rest unchanged."""
    size = np.broadcast_to(size, (len(positions), len(theta)))
    matrices = np.zeros((len(positions), e, e))
    for t, n in enumerate(positions):
        matrices[t] = np.eye(e)
        for j, (a, b) in enumerate(pairs):
            cos, sin = math.cos(n * theta[j]) * size[t, j], math.sin(n * theta[j]) * size[t, j]
            matrices[t, a, a], matrices[t, a, b], matrices[t, b, a], matrices[t, b, b] = cos, -sin, sin, cos
    return matrices


def paired(width: int, layout: str) -> list[tuple[int, int]]:
    """The dimensions of each pair among the first `width`."""
    half = width // 2
    return [(j, j + half) if layout == "half" else (2 * j, 2 * j + 1) for j in range(half)]


def alibi_slope(head: int, n_heads: int) -> float:
    """The slope of head 0 … n − 1, with p the power of two up to n: 2^(−8(h+1)/p), then 2^(−4/p), 2^(−12/p) …"""
    power = 1
    while 2 * power <= n_heads:
        power *= 2
    if head < power:
        return float(2.0 ** (-8.0 * (head + 1) / power))
    return float(2.0 ** (-4.0 * (2 * (head - power) + 1) / power))


@functools.cache
def t5_bucket(relative: int, bidirectional: bool, n_buckets: int = 32, max_distance: int = 128) -> int:
    """The bucket of key position − query position, in whole numbers: the largest step whose border is not beyond."""
    first = 0
    if bidirectional:
        n_buckets //= 2
        first = n_buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = n_buckets // 2
    if distance < exact:
        return first + distance
    steps = n_buckets - exact
    # border of step s: exact · (max/exact)^(s/steps) ≤ distance  ⟺  (distance/exact)^steps ≥ (max/exact)^s
    step = max(s for s in range(steps) if distance**steps * exact**s >= max_distance**s * exact**steps)
    return first + exact + step


def shaw_head(
    q: Array,
    k: Array,
    v: Array,
    visible: Visible,
    rows: NDArray[np.int64],
    key_table: Array,
    value_table: Array,
) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
    """Equations 3 and 4 of 1803.02155, with a vector for every pair of tokens."""
    scale = 1 / math.sqrt(q.shape[-1])
    of_keys, of_values = key_table[rows], value_table[rows]  # t s e
    scores = np.einsum("te,tse->ts", q, k[None] + of_keys) * scale
    weights, to_scores = softmax_over(scores, visible)

    def backward(dy: Array) -> dict[str, Array]:
        ds = to_scores(np.einsum("te,tse->ts", dy, v[None] + of_values)) * scale
        d_keys, d_values = np.zeros_like(key_table), np.zeros_like(value_table)
        np.add.at(d_keys, rows, ds[..., None] * q[:, None])
        np.add.at(d_values, rows, weights[..., None] * dy[:, None])
        return {
            "q": np.einsum("ts,tse->te", ds, k[None] + of_keys),
            "k": ds.T @ q,
            "v": weights.T @ dy,
            "key_table.weight": d_keys,
            "value_table.weight": d_values,
        }

    return np.einsum("ts,tse->te", weights, v[None] + of_values), backward


def transformer_xl_head(
    q: Array, k: Array, v: Array, visible: Visible, positions: Array, weight: Array, u: Array, w: Array
) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
    """1901.02860 §3.3: `weight` is this head's W_{k,R} (e, d), `w` the paper's v; R is made for each pair."""
    scale, d = 1 / math.sqrt(q.shape[-1]), weight.shape[1]
    distance = positions[:, None] - positions[None, :]
    sinusoid = np.zeros((*distance.shape, d))
    for j in range(d):
        angle = distance / 10000.0 ** (2 * (j // 2) / d)
        sinusoid[..., j] = np.cos(angle) if j % 2 else np.sin(angle)
    moved = sinusoid @ weight.T  # t s e
    scores = ((q + u) @ k.T + np.einsum("te,tse->ts", q + w, moved)) * scale
    weights, to_scores = softmax_over(scores, visible)

    def backward(dy: Array) -> dict[str, Array]:
        ds = to_scores(dy @ v.T) * scale
        by_content, by_distance = ds @ k, np.einsum("ts,tse->te", ds, moved)
        d_weight = np.einsum("te,tsd->ed", q + w, ds[..., None] * sinusoid)
        return {
            "q": by_content + by_distance,
            "k": ds.T @ (q + u),
            "v": weights.T @ dy,
            "content_bias": by_content.sum(0),
            "position_bias": by_distance.sum(0),
            "position_proj.weight": d_weight,
        }

    return weights @ v, backward
