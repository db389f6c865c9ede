"""State-space models in float64 NumPy, one row at a time and token by token, each as its paper writes it.

The recurrence comes with its gradient worked out by hand; whole mixers are differentiated by finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.enhancements.attention.linear_references import Array, Weights, project, silu

Backward = Callable[[Array, Any], tuple[Any, ...]]


def recurrence(x: Array, dt: Array, A: Any, B: Any, C: Any, S: Any) -> tuple[Array, Backward]:
    """S ← exp(Δ A) S + Δ B xᵀ, y = Re(C S) for each head.

    x (t, h, e), dt (t, h), A (h, n), B, C (t, h, n), S (h, n, e).
    A gradient by a complex number z is dL/dRe z + i dL/dIm z.
    """
    states, outputs = [S], []
    for t in range(len(x)):
        faded = np.exp(dt[t][:, None] * A)[..., None] * states[-1]
        states.append(faded + (dt[t][:, None] * B[t])[..., None] * x[t][:, None])
        outputs.append(np.einsum("hn,hne->he", C[t], states[-1]).real)

    def backward(dy: Array, dS: Any) -> tuple[Any, ...]:
        dx, ddt, dA, dB, dC = (
            np.zeros_like(x),
            np.zeros_like(dt),
            np.zeros_like(A),
            np.zeros_like(B),
            np.zeros_like(C),
        )
        for t in reversed(range(len(x))):
            dC[t] = (np.conj(states[t + 1]) * dy[t][:, None]).sum(2)
            dS = dS + np.conj(C[t])[..., None] * dy[t][:, None]
            decay, step = np.exp(dt[t][:, None] * A), dt[t][:, None]
            d_log = (dS * np.conj(decay[..., None] * states[t])).sum(2)  # of Δ A
            written = (dS * x[t][:, None]).sum(2)  # of Δ B
            dA += d_log * step
            dB[t] = written * step
            ddt[t] = (d_log * np.conj(A) + written * np.conj(B[t])).real.sum(1)
            dx[t] = ((step * np.conj(B[t]))[..., None] * dS).real.sum(1)
            dS = np.conj(decay)[..., None] * dS
        return dx, ddt, dA, dB, dC, dS

    return np.array(outputs), backward


def convolved(x: Array, w: Weights) -> Array:
    """SiLU(Σ_j weight_j x_{t−j} + bias)."""
    weight = w["convolution.weight"]
    out = np.zeros_like(x) + w.get("convolution.bias", np.zeros(1))
    for t in range(len(x)):
        for j in range(min(weight.shape[1], t + 1)):
            out[t] += weight[:, j] * x[t - j]
    return silu(out)


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


def normed(x: Array, gain: Array, epsilon: float) -> Array:
    return gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)


def mamba(x: Array, w: Weights, d_state: int) -> Array:
    """Algorithm 2 and figure 3; r, B and C are normalized where there is a norm for them, as in Jamba."""
    u, gate = np.split(project(x, w, "in_proj"), 2, axis=1)
    u = convolved(u, w)
    low, B, C = np.split(project(u, w, "x_proj"), [-2 * d_state, -d_state], axis=1)
    low, B, C = (
        normed(y, w[f"{name}_norm.weight"], 1e-6) if f"{name}_norm.weight" in w else y
        for name, y in (("dt", low), ("B", B), ("C", C))
    )
    dt, A, S = softplus(project(low, w, "dt_proj")), -np.exp(w["A_log"]), np.zeros_like(w["A_log"])
    y = np.zeros_like(u)
    for t in range(len(x)):
        S = np.exp(dt[t][:, None] * A) * S + (dt[t] * u[t])[:, None] * B[t]
        y[t] = S @ C[t] + w["D"] * u[t]
    return project(y * silu(gate), w, "out_proj")


def mamba2(x: Array, w: Weights, d_state: int, n_groups: int, epsilon: float) -> Array:
    """Figure 6: heads share the B and C of their group, and the norm is over a group's channels."""
    heads, shared = len(w["A_log"]), n_groups * d_state
    width = len(w["norm.weight"]) // heads
    gate, mixed, low = np.split(project(x, w, "in_proj"), [heads * width, -heads], axis=1)
    u, B, C = np.split(convolved(mixed, w), [heads * width, heads * width + shared], axis=1)
    dt = softplus(low + w["dt_bias"])
    y = np.zeros_like(u)
    for h in range(heads):
        group = slice(h * n_groups // heads * d_state, (h * n_groups // heads + 1) * d_state)
        here, S = slice(h * width, (h + 1) * width), np.zeros((d_state, width))
        for t in range(len(x)):
            decay = math.exp(-dt[t, h] * math.exp(w["A_log"][h]))
            S = decay * S + dt[t, h] * np.outer(B[t, group], u[t, here])
            y[t, here] = C[t, group] @ S + w["D"][h] * u[t, here]
    gated = np.split(y * silu(gate), n_groups, axis=1)
    parts = zip(gated, np.split(w["norm.weight"], n_groups), strict=True)
    return project(np.concatenate([normed(g, gain, epsilon) for g, gain in parts], axis=1), w, "out_proj")


def s4d(x: Array, w: Weights, discretization: str) -> Array:
    """The discrete recurrence of equation 3 with all N states, conjugates too, and S4's gated map."""
    half = -np.exp(w["A_log"]) + 1j * w["A_imag"]
    c = w["C"][..., 0] + 1j * w["C"][..., 1]
    A, C = np.concatenate([half, half.conj()], axis=1), np.concatenate([c, c.conj()], axis=1)
    step = np.exp(w["log_step"])[:, None]
    if discretization == "zoh":
        decay, B = np.exp(step * A), (np.exp(step * A) - 1) / A
    else:
        decay, B = (1 + step * A / 2) / (1 - step * A / 2), step / (1 - step * A / 2)
    S, y = np.zeros_like(A), np.zeros_like(x)
    for t in range(len(x)):
        S = decay * S + B * x[t][:, None]
        y[t] = (C * S).sum(1).real + w["D"] * x[t]
    y = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    return project(y, w, "out_proj") / (1 + np.exp(-project(y, w, "gate_proj")))


def linear_recurrence(a: Array, u: Array, h: Array) -> tuple[Array, Backward]:
    """h ← a ⊙ h + u for each channel; a, u (t, i), h (i)."""
    states = [h]
    for t in range(len(a)):
        states.append(a[t] * states[-1] + u[t])

    def backward(dh: Array, last: Array) -> tuple[Array, ...]:
        da, du = np.zeros_like(a), np.zeros_like(u)
        for t in reversed(range(len(a))):
            last = last + dh[t]
            da[t], du[t] = last * states[t], last
            last = a[t] * last
        return da, du, last

    return np.array(states[1:]), backward


def rg_lru(x: Array, w: Weights) -> Array:
    """Equations 1 to 4 of Griffin with c = 8, and 1 in place of √(1 − a²) at the first token."""

    def gate(y: Array, name: str) -> Array:
        weight, bias = w[f"recurrence.{name}.weight"], w[f"recurrence.{name}.bias"]
        parts = np.split(y, len(weight))
        return 1 / (
            1 + np.exp(-np.concatenate([p @ m + b for p, m, b in zip(parts, weight, bias, strict=True)]))
        )

    weight, inputs = w["convolution.weight"], project(x, w, "in_proj")
    z = project(x, w, "gate_proj")
    left = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    h, y = np.zeros(inputs.shape[1]), np.zeros_like(inputs)
    for t in range(len(x)):
        u = w["convolution.bias"] + sum(
            weight[:, j] * inputs[t - j] for j in range(min(weight.shape[1], t + 1))
        )
        a = np.exp(-8 * softplus(w["recurrence.decay"]) * gate(u, "recurrence_gate"))
        h = a * h + (np.sqrt(1 - a * a) if t else 1.0) * gate(u, "input_gate") * u
        y[t] = left[t] * h
    return project(y, w, "out_proj")
