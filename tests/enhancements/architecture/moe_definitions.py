"""Mixtures of experts in float64 NumPy, token by token, with gradients worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.enhancements.feed_forward.test_glu import gated_feed_forward
from tests.references import Array, Backward, feed_forward, gelu_erf

Choice = tuple[list[int], Array, Array, Callable[[Array], Array], Callable[[Array], Array]]
"""Numbers of the experts, gates, shares; the logits' gradient by the gates, and by the shares."""


def softmax(z: Array) -> Array:
    powers = np.exp(z - z.max())
    return powers / powers.sum()


def along_softmax(p: Array, dp: Array) -> Array:
    return p * (dp - (dp * p).sum())


def choose(values: Array, k: int) -> list[int]:
    """The k largest one by one; of equal ones the first."""
    left, found = list(range(len(values))), []
    for _ in range(k):
        found.append(max(left, key=lambda i: (values[i], -i)))
        left.remove(found[-1])
    return found


def only_groups(values: Array, n_groups: int, top_groups: int, votes: int) -> Array:
    size = len(values) // n_groups
    worth = np.array([sum(sorted(values[g * size : (g + 1) * size])[-votes:]) for g in range(n_groups)])
    kept = choose(worth, top_groups)
    return np.array([v if i // size in kept else -math.inf for i, v in enumerate(values)])


def spread(chosen: list[int], values: Array, n: int) -> Array:
    out = np.zeros(n)
    out[chosen] = values
    return out


def before(z: Array, k: int, scale: float, groups: tuple[int, int], renormalize: bool) -> Choice:
    p = softmax(z)
    chosen = choose(only_groups(p, *groups, 1), k)
    total = p[chosen].sum() if renormalize else 1.0

    def by_gates(dg: Array) -> Array:
        inner = (dg * p[chosen]).sum() / total**2 if renormalize else 0.0
        return along_softmax(p, spread(chosen, scale * (dg / total - inner), len(z)))

    return chosen, scale * p[chosen] / total, p, by_gates, lambda dp: along_softmax(p, dp)


def after(z: Array, k: int, scale: float, groups: tuple[int, int]) -> Choice:
    chosen, p = choose(only_groups(z, *groups, 1), k), softmax(z)
    g = softmax(z[chosen])

    def by_gates(dg: Array) -> Array:
        return spread(chosen, along_softmax(g, scale * dg), len(z))

    return chosen, scale * g, p, by_gates, lambda dp: along_softmax(p, dp)


def sigmoid(
    z: Array, k: int, scale: float, groups: tuple[int, int], bias: Array, renormalize: bool
) -> Choice:
    s = 1 / (1 + np.exp(-z))
    chosen = choose(only_groups(s + bias, *groups, 2), k)
    total, everything = s[chosen].sum() if renormalize else 1.0, s.sum()

    def by_gates(dg: Array) -> Array:
        inner = (dg * s[chosen]).sum() / total**2 if renormalize else 0.0
        return spread(chosen, scale * (dg / total - inner), len(z)) * s * (1 - s)

    def by_shares(dp: Array) -> Array:
        return (dp / everything - (dp * s).sum() / everything**2) * s * (1 - s)

    return chosen, scale * s[chosen] / total, s / everything, by_gates, by_shares


KEYS = [f"{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias")]


def expert(weights: dict[str, Array], number: int, n: int, name: str = "experts") -> dict[str, Array]:
    """The weights of one expert, of the matrices that hold all."""
    there = [key for key in KEYS if f"{name}.{key}" in weights]
    return {key: np.split(weights[f"{name}.{key}"], n)[number] for key in there}


class Mixture:
    """Σ g_i E_i(x) of each token, its losses and its gradients; what was decided stands in `loads` and `dropped`.

    alphas: of balance, sequence balance and z-loss; factor: of capacity.
    """

    def __init__(
        self,
        x: Array,
        real: Array,
        weights: dict[str, Array],
        n: int,
        route: Callable[[Array], Choice],
        gated: str | None,
        alphas: tuple[float, float, float] = (0.0, 0.0, 0.0),
        factor: float = math.inf,
    ) -> None:
        self.x, self.real, self.weights, self.n, self.gated, self.alphas = x, real, weights, n, gated, alphas
        self.z = x @ weights["router.proj.weight"].T + weights.get("router.proj.bias", 0.0)
        self.tokens = [(int(b), int(t)) for b, t in np.argwhere(real)]
        self.choices = {at: route(self.z[at]) for at in self.tokens}
        self.rows = [b for b in range(len(x)) if real[b].any()]
        self.value, self.loads, self.dropped = np.zeros_like(x), np.zeros(n), 0
        self.networks: dict[Any, tuple[Array, Backward]] = {}
        self.pass_through(factor)
        self.f = self.loads / self.loads.sum()
        self.f_row = {
            b: self.row_mean(b, lambda choice: spread(choice[0], 1 / len(choice[0]), n)) for b in self.rows
        }
        self.log_sum = {at: math.log(np.exp(self.z[at]).sum()) for at in self.tokens}
        self.loss = self.add_losses()

    def pass_through(self, factor: float) -> None:
        for b in self.rows:
            k = len(self.choices[b, int(np.flatnonzero(self.real[b])[0])][0])
            share = k * self.real[b].sum() * factor / self.n
            room = np.full(self.n, share if math.isinf(factor) else math.ceil(share - 1e-9))
            for t in map(int, np.flatnonzero(self.real[b])):
                for i, g in zip(*self.choices[b, t][:2], strict=True):
                    self.loads[i] += 1
                    room[i] -= 1
                    if room[i] < 0:
                        self.dropped += 1
                        continue
                    made = self.network(self.x[b, t], i)
                    self.networks[b, t, i] = made
                    self.value[b, t] += g * made[0]

    def network(self, x: Array, number: int) -> tuple[Array, Backward]:
        one = expert(self.weights, number, self.n)
        return gated_feed_forward(x, one, self.gated) if self.gated else feed_forward(x, one, gelu_erf)

    def row_mean(self, row: int, of: Callable[[Choice], Array]) -> Array:
        return np.mean([of(self.choices[at]) for at in self.tokens if at[0] == row], axis=0)  # type: ignore[no-any-return]

    def add_losses(self) -> float:
        shares = np.mean([choice[2] for choice in self.choices.values()], axis=0)
        loss = self.alphas[0] * self.n * (self.f * shares).sum()
        loss += self.alphas[2] * np.mean([value**2 for value in self.log_sum.values()])
        each = [(self.f_row[b] * self.row_mean(b, lambda choice: choice[2])).sum() for b in self.rows]
        return float(loss + self.alphas[1] * self.n * np.mean(each))

    def backward(self, dy: Array) -> dict[str, Any]:
        """The gradients by x and every parameter of the loss and of the value, whose gradient is `dy`."""
        found: dict[str, Any] = {name: np.zeros_like(value) for name, value in self.weights.items()}
        found["x"], dz = np.zeros_like(self.x), np.zeros_like(self.z)
        for at, (chosen, gates, _, by_gates, by_shares) in self.choices.items():
            dg = np.zeros(len(chosen))
            for slot, (i, g) in enumerate(zip(chosen, gates, strict=True)):
                if (*at, i) in self.networks:
                    made, inner = self.networks[(*at, i)]
                    dg[slot] = (dy[at] * made).sum()
                    self.collect(found, at, i, inner(g * dy[at]))
            dp = self.alphas[0] * self.n * self.f / len(self.tokens)
            dp = dp + self.alphas[1] * self.n * self.f_row[at[0]] / (len(self.rows) * self.real[at[0]].sum())
            dz[at] = by_gates(dg) + by_shares(dp)
            dz[at] += self.alphas[2] * 2 * self.log_sum[at] / len(self.tokens) * softmax(self.z[at])
        found["x"] += dz @ self.weights["router.proj.weight"]
        found["router.proj.weight"] = np.einsum("btx,btd->xd", dz, self.x)
        if "router.proj.bias" in self.weights:
            found["router.proj.bias"] = dz.sum((0, 1))
        return found

    def collect(
        self, found: dict[str, Any], at: tuple[int, int], number: int, gradients: dict[str, Any]
    ) -> None:
        found["x"][at] += gradients.pop("x")
        for name, gradient in gradients.items():
            np.split(found[f"experts.{name}"], self.n)[number][...] += gradient
