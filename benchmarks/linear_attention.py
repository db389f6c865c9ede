"""Time the forms of linear attention against softmax attention, in one process.

`python benchmarks/linear_attention.py`. Each row is one kind of attention at one length: milliseconds of processor time
for forward and backward of the attention itself (no projections), the least of several runs, and its ratio to softmax
attention as it is defined (`scaled_dot_product_attention`), at the same batch, heads and widths. `recurrent` is the
same attention token by token. Forms are timed in turn, so that a slow moment of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.base.attention import scaled_dot_product_attention
from transformer.base.sockets import Layout, Mask, Pairs, Position, Scoring
from transformer.enhancements.attention.delta_net import chunked_delta_scan, recurrent_delta_scan
from transformer.enhancements.attention.recurrence import chunked_scan, recurrent_scan

Run = Callable[[], Tensor]


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Run:
    layout = Layout(torch.arange(q.shape[2])[None])
    pairs = Pairs(layout, layout, Mask(causal=True), Position())
    return lambda: scaled_dot_product_attention(q, k, v, pairs, Scoring(q.shape[3] ** -0.5))


def forms(batch: int, heads: int, length: int, width: int, recurrent: bool) -> dict[str, Run]:
    """Every form over the same queries, keys and values; with the recurrent ones, which are slow, or without."""
    shape = (batch, heads, length)
    q, v = (torch.randn(*shape, width, requires_grad=True) for _ in range(2))
    k = F.normalize(torch.randn(*shape, width), dim=-1).requires_grad_()
    head, entry = (F.logsigmoid(torch.randn(*shape, w)).div(16).requires_grad_() for w in (1, width))
    none, beta = torch.zeros(1, 1, length, 1), torch.rand(*shape, 1, requires_grad=True)
    start = torch.zeros(batch, heads, width, width)
    pair = (chunked_scan, recurrent_scan), (chunked_delta_scan, recurrent_delta_scan)
    kinds = {
        "no decay": (pair[0], (q, k, v, none)),
        "decay per head": (pair[0], (q, k, v, head)),
        "decay per entry": (pair[0], (q, k, v, entry)),
        "delta rule": (pair[1], (q, k, v, none, beta)),
        "gated delta rule": (pair[1], (q, k, v, head, beta)),
    }
    found: dict[str, Run] = {"softmax": softmax(q, k, v)}
    for name, ((chunked, stepwise), tensors) in kinds.items():
        found[f"{name}, chunked"] = lambda f=chunked, x=tensors: f(*x, runs=None, initial=start)[0]  # type: ignore[misc]
        if recurrent:
            found[f"{name}, recurrent"] = lambda f=stepwise, x=tensors: f(*x, runs=None, initial=start)[0]  # type: ignore[misc]
    return found


def measure(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """The least processor time of each, in milliseconds."""
    least = dict.fromkeys(runs, float("inf"))
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run().sum().backward()
            if turn:  # the first round warms up
                least[name] = min(least[name], 1e3 * (time.process_time() - begin))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description="forms of linear attention against softmax attention")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recurrent-up-to", type=int, default=512, help="longest length of recurrent forms")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"{'tokens':>7} {'attention':<28} {'ms':>9} {'of softmax':>11}")
    for length in options.lengths:
        recurrent = length <= options.recurrent_up_to
        times = measure(forms(options.batch, options.heads, length, options.width, recurrent), options.rounds)
        for name, milliseconds in times.items():
            print(f"{length:>7} {name:<28} {milliseconds:>9.1f} {milliseconds / times['softmax']:>11.2f}")


if __name__ == "__main__":
    main()
