"""Decoding: how caches are kept, and what guessing ahead is worth.

    python benchmarks/decoding.py            # some minutes; prints the tables of docs/results/decoding.md

Two ways of keeping keys and values are timed in turn, pair by pair, in one process and on one thread, by the CPU time
of that process, so that other work on the machine falls on both. The ratio is taken of each pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transformer.enhancements.attention.sliding_window import sliding_window
from transformer.generation import DraftModel, PromptLookup, Sampling, generate, speculate
from transformer.interop import load
from transformer.models import DecoderOnly, build, llama

PAIRS, STORIES = 5, Path("tests/checkpoints/stories260K/stories260K.bin")


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def model(d_model: int, n_layers: int, window: int | None = None) -> DecoderOnly:
    torch.manual_seed(0)
    config = llama(1000, d_model=d_model, n_heads=d_model // 64, n_layers=n_layers, max_seq_len=4096)
    built = build(config if window is None else sliding_window(window)(config))
    assert isinstance(built, DecoderOnly)
    return built.eval()


def caches(name: str, built: DecoderOnly, rows: int, length: int) -> str:
    """One row of the table: tokens a second with either cache, and the ratio of the two."""
    prompt = torch.randint(1000, (rows, 16), generator=torch.Generator().manual_seed(1))

    def run(cache: str) -> float:
        return seconds(lambda: generate(built, prompt, length, temperature=0, cache=cache))

    run("growing"), run("static")
    pairs = [(run("growing"), run("static")) for _ in range(PAIRS)]
    speeds = [statistics.median(rows * length / pair[i] for pair in pairs) for i in (0, 1)]
    ratios = sorted(growing / static for growing, static in pairs)
    return (
        f"| {name} | {rows} | {length} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
    )


def guesses(name: str, drafter: Any, temperature: float) -> str:
    """One row of the table: what of the guesses was kept, over 20 stories."""
    stories = load(STORIES)
    assert isinstance(stories, DecoderOnly)
    n_tokens = 0
    for seed in range(20):
        new = speculate(
            stories, drafter, torch.tensor([[1]]), 200, Sampling(temperature, seed=seed), stop=(1, 2)
        )
        n_tokens += sum(1 for _ in new)
    tally = drafter.tally
    return f"| {name} | {temperature} | {tally.rate:.0%} | {n_tokens / tally.calls:.2f} |"


def main() -> None:
    torch.set_num_threads(1)
    print("| model | rows | tokens | growing, tokens/s | static, tokens/s | static / growing |")
    print("|---|---|---|---|---|---|")
    for name, built in (
        ("d 128, 2 layers", model(128, 2)),
        ("d 256, 4 layers", model(256, 4)),
        ("d 256, 4 layers, window 128", model(256, 4, 128)),
    ):
        for rows, length in ((1, 256), (1, 1024), (8, 512)):
            print(caches(name, built, rows, length), flush=True)
    print("\n| guesses | temperature | kept | tokens per call |\n|---|---|---|---|")
    stories = load(STORIES)
    for temperature in (0.0, 1.0):
        print(guesses("look-up, 8 tokens", PromptLookup(), temperature), flush=True)
        print(guesses("the model itself, 4 tokens", DraftModel(stories, 4), temperature), flush=True)


if __name__ == "__main__":
    main()
