"""Linear attentions in float64 NumPy, one row at a time and token by token, each as its paper writes it.

The two recurrences come with their gradients worked out by hand; whole mixers are differentiated by finite differences.
Nothing here is shared with the package: no chunks, no masks, no padding. A row is given without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from transformer.base import scaled_dot_product_attention
from transformer.base.sockets import Context, Execution, Layout, Mask

Array = NDArray[np.float64]
Weights = dict[str, Array]

WIDTH, HEADS, LENGTHS = 48, 12, (70, 33, 1)


# ---------------------------------------------------------------- recurrences, with their gradients


def decayed(
    q: Array, k: Array, v: Array, log_decay: Array, S: Array
) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
    """S ← diag(a) S + kᵀ v, o = q S; q, k (t, e), v (t, f), log_decay (t, e or 1), S (e, f)."""
    states, outputs = [S], []
    for t in range(len(q)):
        states.append(np.exp(log_decay[t])[:, None] * states[-1] + np.outer(k[t], v[t]))
        outputs.append(q[t] @ states[-1])

    def backward(dy: Array) -> tuple[Array, ...]:
        dq, dk, dv, dg = (np.zeros_like(x) for x in (q, k, v, log_decay))
        dS = np.zeros_like(S)
        for t in reversed(range(len(q))):
            dS = dS + np.outer(q[t], dy[t])
            dq[t] = states[t + 1] @ dy[t]
            dk[t], dv[t] = dS @ v[t], k[t] @ dS
            faded = np.exp(log_decay[t])[:, None] * states[t]
            per_channel = (dS * faded).sum(1)
            dg[t] = per_channel if log_decay.shape[1] > 1 else per_channel.sum()
            dS = np.exp(log_decay[t])[:, None] * dS
        return dq, dk, dv, dg, dS

    return np.array(outputs), backward


def delta(
    q: Array, k: Array, v: Array, log_decay: Array, beta: Array, S: Array
) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
    """S ← α (I − β kᵀ k) S + β kᵀ v, o = q S; log_decay and beta (t, 1)."""
    states, outputs = [S], []
    for t in range(len(q)):
        shrink = np.eye(len(S)) - beta[t, 0] * np.outer(k[t], k[t])
        states.append(math.exp(log_decay[t, 0]) * shrink @ states[-1] + beta[t, 0] * np.outer(k[t], v[t]))
        outputs.append(q[t] @ states[-1])

    def backward(dy: Array) -> tuple[Array, ...]:
        dq, dk, dv, dg, db = (np.zeros_like(x) for x in (q, k, v, log_decay, beta))
        dS = np.zeros_like(S)
        for t in reversed(range(len(q))):
            dS = dS + np.outer(q[t], dy[t])
            dq[t] = states[t + 1] @ dy[t]
            faded = math.exp(log_decay[t, 0]) * states[t]
            wrong = v[t] - k[t] @ faded  # S_t = faded + β kᵀ wrong
            written = k[t] @ dS
            db[t] = written @ wrong
            dv[t] = beta[t, 0] * written
            dk[t] = beta[t, 0] * (dS @ wrong - faded @ written)
            d_faded = dS - beta[t, 0] * np.outer(k[t], written)
            dg[t] = (d_faded * faded).sum()
            dS = math.exp(log_decay[t, 0]) * d_faded
        return dq, dk, dv, dg, db, dS

    return np.array(outputs), backward


# ---------------------------------------------------------------- mixers; x is (t, d)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def project(x: Array, w: Weights, name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.zeros(1))


def per_head(*arrays: Array) -> list[tuple[Array, ...]]:
    """Split the last axis of each into the heads."""
    return list(zip(*(np.split(x, HEADS, axis=-1) for x in arrays), strict=True))


def rotated(x: Array, base: float = 10000.0) -> Array:
    """Rotary position, by complex numbers."""
    half = x.shape[-1] // 2
    theta = base ** (-2 * np.arange(half) / x.shape[-1])
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * np.arange(len(x))[:, None] * theta)
    return np.concatenate([z.real, z.imag], axis=-1)


def weighted_average(q: Array, k: Array, v: Array, causal: bool, epsilon: float, turn: bool = False) -> Array:
    """Σ_s (q_t·k_s) v_s / (Σ_s q_t·k_s + ε), pair by pair; with `turn`, rotated in the numerator."""
    q_turned, k_turned = (rotated(q), rotated(k)) if turn else (q, k)
    outputs = []
    for t in range(len(q)):
        seen = slice(0, t + 1 if causal else len(q))
        top = (k_turned[seen] @ q_turned[t]) @ v[seen]
        outputs.append(top / ((k[seen] @ q[t]).sum() + epsilon))
    return np.array(outputs)


def linear_attention(x: Array, w: Weights, causal: bool, epsilon: float, turn: bool = False) -> Array:
    def features(y: Array) -> Array:
        return np.where(y > 0, y + 1, np.exp(np.minimum(y, 0)))

    parts = per_head(*(project(x, w, f"{n}_proj") for n in "qkv"))
    heads = [weighted_average(features(q), features(k), v, causal, epsilon, turn) for q, k, v in parts]
    return project(np.concatenate(heads, axis=1), w, "out_proj")


def performer(x: Array, w: Weights, causal: bool) -> Array:
    """FAVOR+ as lemma 1 has it, with no divisors and no ε."""

    def features(y: Array) -> Array:
        y = y / y.shape[-1] ** 0.25
        length = (y * y).sum(-1, keepdims=True)
        return np.exp(y @ w["directions"].T - length / 2) / math.sqrt(len(w["directions"]))

    parts = per_head(*(project(x, w, f"{n}_proj") for n in "qkv"))
    heads = [weighted_average(features(q), features(k), v, causal, 0.0) for q, k, v in parts]
    return project(np.concatenate(heads, axis=1), w, "out_proj")


def normalized(x: Array, epsilon: float, gain: Array | float = 1.0, shift: Array | float = 0.0) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return gain * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) + shift


def rms_normalized(x: Array, gain: Array, epsilon: float = 1e-6) -> Array:
    return gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)


def retention(x: Array, w: Weights, turn: bool = False) -> Array:
    """Equation 5: γ^{n−m} for every pair."""
    q, k, v = (project(x, w, f"{n}_proj") for n in "qkv")
    heads = []
    for i, (qi, ki, vi) in enumerate(per_head(q, k, v)):
        gamma, scale = 1 - 2.0 ** (-5 - i), qi.shape[1] ** -0.5
        if turn:
            qi, ki = rotated(qi), rotated(ki)
        out = np.zeros_like(vi)
        for n in range(len(x)):
            faded = gamma ** (n - np.arange(n + 1.0))
            out[n] = (faded * scale * (ki[: n + 1] @ qi[n])) @ vi[: n + 1]
        heads.append(normalized(out, 1e-5))
    return project(silu(project(x, w, "gate_proj")) * np.concatenate(heads, axis=1), w, "out_proj")


def gated_linear(x: Array, w: Weights, temperature: float) -> Array:
    gate = sigmoid(project(x @ w["decay_proj.0.weight"].T, w, "decay_proj.1")) ** (1 / temperature)
    heads = []
    for q, k, v, a in per_head(*(project(x, w, f"{n}_proj") for n in "qkv"), gate):
        out, _ = decayed(q, k, v, np.log(a), np.zeros((q.shape[1], v.shape[1])))
        heads.append(normalized(out, 1e-5, w["norm.weight"], w["norm.bias"]))
    return project(silu(project(x, w, "gate_proj")) * np.concatenate(heads, axis=1), w, "out_proj")


def convolved(x: Array, weight: Array) -> Array:
    """SiLU(Σ_j weight_j x_{t−j})."""
    out = np.zeros_like(x)
    for t in range(len(x)):
        for j in range(min(weight.shape[1], t + 1)):
            out[t] += weight[:, j] * x[t - j]
    return silu(out)


def unit(x: Array) -> Array:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def delta_net(x: Array, w: Weights) -> Array:
    mixed = np.concatenate([project(x, w, f"{n}_proj") for n in "qkv"], axis=1)
    q, k, v = np.split(convolved(mixed, w["convolution.weight"]), 3, axis=1)
    beta, heads = sigmoid(project(x, w, "beta_proj")), []
    for h, (qh, kh, vh) in enumerate(per_head(q, k, v)):
        start = np.zeros((qh.shape[1], vh.shape[1]))
        out, _ = delta(unit(qh), unit(kh), vh, np.zeros((len(x), 1)), beta[:, h : h + 1], start)
        heads.append(rms_normalized(out, w["norm.weight"]))
    return project(np.concatenate(heads, axis=1), w, "out_proj")


def gated_delta_net(x: Array, w: Weights) -> Array:
    projected = [project(x, w, f"{n}_proj") for n in "qkv"]
    ends = np.cumsum([y.shape[1] for y in projected])[:-1]
    q, k, v = np.split(convolved(np.concatenate(projected, axis=1), w["convolution.weight"]), ends, axis=1)
    beta = sigmoid(project(x, w, "beta_proj"))
    step = np.log1p(np.exp(project(x, w, "decay_proj") + w["dt_bias"]))
    log_alpha, heads = -np.exp(w["A_log"]) * step, []
    for h, (qh, kh, vh) in enumerate(per_head(q, k, v)):
        start, at = np.zeros((qh.shape[1], vh.shape[1])), slice(h, h + 1)
        out, _ = delta(unit(qh), unit(kh), vh, log_alpha[:, at], beta[:, at], start)
        heads.append(rms_normalized(out, w["norm.weight"]))
    gate = silu(project(x, w, "gate_proj"))
    return project(np.concatenate(heads, axis=1) * gate, w, "out_proj")


# ---------------------------------------------------------------- comparing a mixer with its definition


def array(x: Tensor) -> Array:
    return x.detach().double().numpy()


def weights_of(module: nn.Module) -> Weights:
    return {name: array(tensor) for name, tensor in module.state_dict().items()}


def randomized(module: nn.Module, dtype: torch.dtype = torch.float64) -> Any:
    """The module with weights away from special values, and maps that keep sizes about 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64) / parameter.shape[-1] ** 0.5
            parameter.copy_(noise + (0.1 if parameter.ndim > 1 else 0.5))
    return module.to(dtype)


def context_of(layout: Layout, causal: bool = True, **options: Any) -> Context:
    return Context(layout, Mask(causal=causal), Execution(scaled_dot_product_attention), **options)


def ragged(left: bool) -> Tensor:
    """Which tokens of rows of `LENGTHS` are real, padded on one side."""
    index = torch.arange(max(LENGTHS))
    lengths = torch.tensor(LENGTHS)[:, None]
    return index >= max(LENGTHS) - lengths if left else index < lengths


def check_definition(
    module: nn.Module,
    define: Callable[[Array, Weights], Array],
    dtype: torch.dtype,
    tolerance: float,
    *,
    causal: bool = True,
    left: bool = False,
    **options: Any,
) -> None:
    """Hold the module, on ragged rows, against `define` on each row alone; and, in float64, its gradients.

    Gradients, by the input and all parameters at once, are compared with central differences of the definition.
    """
    real = ragged(left)
    x = (torch.randn(*real.shape, WIDTH, dtype=torch.float64) + 0.3).to(dtype).requires_grad_()
    output = module(x, context_of(Layout.of(real.long(), real), causal, **options))
    slope, w = array(torch.randn_like(output)) * real[..., None].numpy(), weights_of(module)

    def rows(values: Array, weights: Weights) -> list[Array]:
        return [define(row[here.numpy()], weights) for row, here in zip(values, real, strict=True)]

    for row, here, expected in zip(output, real, rows(array(x), w), strict=True):
        error = np.abs(array(row[here]) - expected).max()
        assert error <= tolerance * max(1.0, np.abs(expected).max()), error
    if dtype == torch.float64:
        output.backward(torch.from_numpy(slope))
        _check_slopes(module, x, rows, [s[h.numpy()] for s, h in zip(slope, real, strict=True)])


def _check_slopes(module: nn.Module, x: Tensor, rows: Any, slopes: list[Array]) -> None:
    """Differences of fourth order along random directions of the input and of each parameter in turn.

    (8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h: a norm of a small vector bends too much for two points.
    """
    w, h, rng = weights_of(module), 1e-6, np.random.default_rng(0)
    leaves = {"x": x, **dict(module.named_parameters())}
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.abs().max() > 0, name
        direction = rng.normal(size=leaf.shape)
        sums = []
        for step in (1, -1, 2, -2):
            moved = {"x": array(x), **w}
            moved[name] = moved[name] + step * h * direction
            values = rows(moved.pop("x"), moved)
            sums.append(sum((y * s).sum() for y, s in zip(values, slopes, strict=True)))
        difference = (8 * (sums[0] - sums[1]) - (sums[2] - sums[3])) / (12 * h)
        ours = (array(leaf.grad) * direction).sum()
        size = np.abs(array(leaf.grad) * direction).sum()
        assert abs(difference - ours) <= 1e-7 * max(1.0, size), (name, difference, ours)
