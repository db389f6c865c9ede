"""The norms and wirings in float64 NumPy, each with its gradient worked out by hand.

As in `tests.references`: a function returns its value and a function from the gradient of the value to those of the
inputs. A sub-layer or norm that is an argument is such a function of x itself. Groups are gone through one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.references import Array, Backward, layer_norm, rms_norm

Function = Callable[[Array], tuple[Array, Backward]]


def over_tokens(gradient: Array) -> Array:
    """Sum over every axis but the last."""
    return gradient.reshape(-1, gradient.shape[-1]).sum(0)


def unit_offset_rms_norm(x: Array, offset: Array, epsilon: float) -> tuple[Array, Backward]:
    """x / √(mean x² + ε) · (1 + g); d/dg is d/d(1 + g)."""
    return rms_norm(x, 1.0 + offset, epsilon)


def non_parametric_layer_norm(x: Array, epsilon: float) -> tuple[Array, Backward]:
    """(x − μ) / √(σ² + ε)."""
    y, back = layer_norm(x, np.ones(x.shape[-1]), np.zeros(x.shape[-1]), epsilon)
    return y, lambda dy: {"x": back(dy)["x"]}


def non_parametric_rms_norm(x: Array, epsilon: float) -> tuple[Array, Backward]:
    """x / √(mean x² + ε)."""
    y, back = rms_norm(x, np.ones(x.shape[-1]), epsilon)
    return y, lambda dy: {"x": back(dy)["x"]}


def scale_norm(x: Array, g: Array, epsilon: float) -> tuple[Array, Backward]:
    """g x / ‖x‖, and g x / ε for a vector shorter than ε; token by token."""
    y, lengths = np.zeros_like(x), np.zeros(x.shape[:-1])
    for token in np.ndindex(x.shape[:-1]):
        lengths[token] = max(float(np.sqrt(np.dot(x[token], x[token]))), epsilon)
        y[token] = g[0] * x[token] / lengths[token]

    def backward(dy: Array) -> dict[str, Array]:
        dx, dg = np.zeros_like(x), 0.0
        for token in np.ndindex(x.shape[:-1]):
            length, along = lengths[token], float(np.dot(dy[token], x[token]))
            dx[token] = g[0] * dy[token] / length
            if length > epsilon:
                dx[token] -= g[0] * x[token] * along / length**3
            dg += along / length
        return {"x": dx, "weight": np.array([dg])}

    return y, backward


def group_norm(x: Array, gain: Array, shift: Array, n_groups: int, epsilon: float) -> tuple[Array, Backward]:
    """A layer norm of each run of d / n_groups channels."""
    width = x.shape[-1] // n_groups
    parts = [slice(start, start + width) for start in range(0, x.shape[-1], width)]
    done = [layer_norm(x[..., part], gain[part], shift[part], epsilon) for part in parts]

    def backward(dy: Array) -> dict[str, Array]:
        gradients = [back(dy[..., part]) for (_, back), part in zip(done, parts, strict=True)]
        return {n: np.concatenate([g[n] for g in gradients], axis=-1) for n in ("x", "weight", "bias")}

    return np.concatenate([y for y, _ in done], axis=-1), backward


def dynamic_tanh(x: Array, alpha: Array, gain: Array, shift: Array) -> tuple[Array, Backward]:
    """γ tanh(αx) + β; tanh′ = 1 − tanh²."""
    squashed = np.tanh(alpha[0] * x)

    def backward(dy: Array) -> dict[str, Array]:
        inner = dy * gain * (1 - squashed**2)
        return {
            "x": inner * alpha[0],
            "alpha": np.array([(inner * x).sum()]),
            "weight": over_tokens(dy * squashed),
            "bias": over_tokens(dy),
        }

    return gain * squashed + shift, backward


# ---------------------------------------------------------------- wirings


def named(prefix: str, gradients: dict[str, Any]) -> dict[str, Any]:
    """The gradients by a part's weights, under the part's name."""
    return {f"{prefix}.{name}": g for name, g in gradients.items() if name != "x"}


def sandwich(x: Array, branch: Function, norm: Function, output_norm: Function) -> tuple[Array, Backward]:
    """x + LN_out(f(LN(x)))."""
    inner, back_norm = norm(x)
    made, back_branch = branch(inner)
    change, back_output = output_norm(made)

    def backward(dy: Array) -> dict[str, Any]:
        outer = back_output(dy)
        middle = back_branch(outer["x"])
        first = back_norm(middle["x"])
        weights = named("output_norm", outer) | named("branch", middle) | named("norm", first)
        return {"x": dy + first["x"], **weights}

    return x + change, backward


def post_sublayer(x: Array, branch: Function, norm: Function) -> tuple[Array, Backward]:
    """x + LN(f(x))."""
    made, back_branch = branch(x)
    change, back_norm = norm(made)

    def backward(dy: Array) -> dict[str, Any]:
        outer = back_norm(dy)
        inner = back_branch(outer["x"])
        return {"x": dy + inner["x"], **named("norm", outer), **named("branch", inner)}

    return x + change, backward


def deep_norm(x: Array, branch: Function, norm: Function, alpha: float) -> tuple[Array, Backward]:
    """LN(α x + f(x))."""
    made, back_branch = branch(x)
    y, back_norm = norm(alpha * x + made)

    def backward(dy: Array) -> dict[str, Any]:
        outer = back_norm(dy)
        inner = back_branch(outer["x"])
        return {"x": alpha * outer["x"] + inner["x"], **named("norm", outer), **named("branch", inner)}

    return y, backward


def layer_scale(x: Array, branch: Function, norm: Function, gains: Array) -> tuple[Array, Backward]:
    """x + λ ∘ f(LN(x))."""
    inner, back_norm = norm(x)
    made, back_branch = branch(inner)

    def backward(dy: Array) -> dict[str, Any]:
        middle = back_branch(dy * gains)
        first = back_norm(middle["x"])
        weights = {"weight": over_tokens(dy * made), **named("branch", middle), **named("norm", first)}
        return {"x": dy + first["x"], **weights}

    return x + gains * made, backward


def residual_multiplier(x: Array, branch: Function, norm: Function, m: float) -> tuple[Array, Backward]:
    """x + m · f(LN(x))."""
    inner, back_norm = norm(x)
    made, back_branch = branch(inner)

    def backward(dy: Array) -> dict[str, Any]:
        middle = back_branch(m * dy)
        first = back_norm(middle["x"])
        return {"x": dy + first["x"], **named("branch", middle), **named("norm", first)}

    return x + m * made, backward


def resi_dual(
    x: Array, branches: list[tuple[str, Function, Function]], final: Function
) -> tuple[Array, Backward]:
    """x_{k+1} = LN_k(x_k + f_k(x_k)), d_{k+1} = d_k + f_k(x_k), x_0 = d_0 = x; x_N + LN(d_N).

    `branches` are the names, sub-layers and norms, first to last.
    """
    post, dual, backs = x, x, []
    for name, branch, norm in branches:
        made, back_branch = branch(post)
        post, back_norm = norm(post + made)
        dual = dual + made
        backs.append((name, back_branch, back_norm))
    ending, back_final = final(dual)

    def backward(dy: Array) -> dict[str, Any]:
        last = back_final(dy)
        d_post, d_dual, weights = dy, last["x"], named("norm.norm", last)
        for name, back_branch, back_norm in reversed(backs):
            outer = back_norm(d_post)
            inner = back_branch(outer["x"] + d_dual)
            d_post = outer["x"] + inner["x"]
            weights |= named(f"{name}.norm", outer) | named(f"{name}.branch", inner)
        return {"x": d_post + d_dual, **weights}

    return post + ending, backward
