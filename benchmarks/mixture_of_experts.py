"""Time of the two ways to bring tokens to experts on this machine's CPU; writes docs/results/mixture_of_experts.md.

    OMP_NUM_THREADS=1 python benchmarks/mixture_of_experts.py

Forward and backward pass of one mixture (SwiGLU experts, two of them for each token, dropless) in float32 and processor
time of one thread. The ways run in turn, round after round, in one process; of the rounds' ratios the median and the
range are given, so that a slow moment of the machine falls on all.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from transformer.base.sockets import Context, Execution, Layout, Mask
from transformer.enhancements import grouped_dispatch, loop_dispatch, naive_attention
from transformer.enhancements.architecture.moe.dispatch import Dispatch, Slots
from transformer.enhancements.architecture.moe.experts import Experts
from transformer.enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from transformer.enhancements.architecture.moe.softmax import SoftmaxAfterTopKConfig
from transformer.enhancements.feed_forward.glu import GatedFeedForwardConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "mixture_of_experts.md"
WIDTH, TOP_K = 128, 2
CASES = ((8, 128, 1024), (32, 128, 256), (32, 128, 1024), (32, 128, 4096), (32, 512, 1024), (128, 64, 1024))
"""Experts, their d_ff, and tokens."""


def split_loop(experts: Experts, x: Tensor, slots: Slots) -> Tensor:
    """The loop with all matrices split once: autograd then makes no zero gradient of all of them for each expert."""
    maps = {
        name: module.weight.chunk(experts.n_experts)
        for name, module in experts.named_children()
        if "proj" in name
    }
    flat = rearrange(x, "b t d -> (b t) d")
    out = torch.zeros_like(flat)
    for number in range(experts.n_experts):
        here = (slots.kept & (slots.experts == number)).nonzero().squeeze(1)
        tokens, gates = slots.tokens[here], slots.gates[here]
        gate, up, down = (maps[name][number] for name in ("gate_proj", "up_proj", "down_proj"))
        made = F.linear(F.silu(F.linear(flat[tokens], gate)) * F.linear(flat[tokens], up), down)
        out = out.index_add(0, tokens, made * gates[:, None])
    return out.view_as(x)


def seconds(run: Callable[[], Tensor]) -> float:
    """Processor time of a forward and a backward pass."""
    start = time.process_time()
    run().sum().backward()
    return time.process_time() - start


def compare(n_experts: int, d_ff: int, n_tokens: int, rounds: int) -> list[list[float]]:
    """In each round, how many times as long as the grouped way take the loop, the loop on split weights, and one
    network through which each token goes twice: what the experts would take without any sorting.
    """
    config = MixtureOfExpertsConfig(
        n_experts, GatedFeedForwardConfig(d_ff), SoftmaxAfterTopKConfig(TOP_K), losses=()
    )
    mixture, dense = config.build(WIDTH), GatedFeedForwardConfig(d_ff).build(WIDTH)
    x = torch.randn(1, n_tokens, WIDTH, requires_grad=True)
    context = call(n_tokens, grouped_dispatch)
    ways = [
        partial(mixture, x, call(n_tokens, dispatch))
        for dispatch in (grouped_dispatch, loop_dispatch, split_loop)
    ]
    ways.append(lambda: dense(torch.cat([x] * TOP_K), context))
    found = []
    for turn in range(rounds + 1):
        times = [seconds(way) for way in ways]
        found += [[one / times[0] for one in times[1:]]] if turn else []
    return found


def call(n_tokens: int, dispatch: Dispatch) -> Context:
    layout = Layout.of(torch.zeros(1, n_tokens, dtype=torch.long))
    return Context(layout, Mask(causal=True), Execution(naive_attention, dispatch=dispatch))


def cell(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def page(rounds: int) -> str:
    lines = [
        "| experts | d_ff | tokens | loop | loop, weights split once | one network, each token twice |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        columns = zip(*compare(*case, rounds), strict=True)
        lines.append("| " + " | ".join([*(f"{x:,}" for x in case), *(cell(list(c)) for c in columns)]) + " |")
        print(lines[-1], flush=True)
    machine = f"{platform.machine()}, PyTorch {torch.__version__}, one thread"
    parts = [
        "# Bringing tokens to experts, on a CPU",
        "`OMP_NUM_THREADS=1 python benchmarks/mixture_of_experts.py` writes this page. Machine: "
        + machine
        + ".",
        "Processor time of a forward and a backward pass of one mixture, as a multiple of the grouped way's (more "
        f"than 1 is slower): width {WIDTH}, SwiGLU experts, {TOP_K} for each token, float32, dropless. The median of "
        f"{rounds} alternated rounds, and their range.",
        "\n".join(lines),
        "The loop is `loop_dispatch`, the definition. What it loses to the grouped way is mostly one thing: each "
        "expert takes its matrices out of those of all, and in the backward pass autograd makes a gradient as large "
        "as all of them for every expert, and adds these up. A loop that splits the matrices once does not, as the "
        "next column shows. The more tokens an expert has, the less that weighs. The last column is one network of an "
        "expert's size that every token passes twice: as many operations as the mixture has, without a router, "
        "sorting, or small products.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="alternated rounds of each comparison")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    PAGE.write_text(page(parser.parse_args().rounds), encoding="utf-8")
