"""Time and memory of the attention kernels on this machine's CPU; writes docs/results/attention_kernels.md.

    python benchmarks/attention_kernels.py

Times are processor time of one thread, as ratios to the definition's. Two kernels run in turn, round after round, in
one process, and the median of the rounds' ratios is given, so that a slow moment of the machine falls on both. Memory
is the peak of a fresh process, less what it held before the inputs were made.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from transformer.base.sockets import NO_POSITION, Kernel, Layout, Mask, Pairs, Scoring
from transformer.enhancements import KERNELS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "attention_kernels.md"
HEADS, WIDTH, LONG = 8, 64, 8192
SIZES = {17: 64, 64: 16, 256: 4, 512: 2, 1024: 1, 2048: 1}
"""Keys, and rows of a batch with so many of them."""


def inputs(batch: int, heads: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(batch, heads, length, WIDTH, dtype=dtype, requires_grad=True) for _ in range(3)]


def pairs_of(batch: int, length: int, causal: bool) -> Pairs:
    layout = Layout.of(torch.zeros(batch, length, dtype=torch.long))
    return Pairs(layout, layout, Mask(causal=causal), NO_POSITION)


def run(kernel: Kernel, tensors: list[Tensor], pairs: Pairs, train: bool) -> float:
    """Seconds of processor time for a forward pass, and a backward pass if asked for."""
    start = time.process_time()
    with torch.set_grad_enabled(train):
        out = kernel(*tensors, pairs, Scoring(WIDTH**-0.5))
    if train:
        torch.autograd.grad(out.sum(), tensors)
    return time.process_time() - start


def ratio(name: str, length: int, dtype: torch.dtype, causal: bool, train: bool, rounds: int) -> float:
    """How many times as long as the definition the kernel takes: the median over the rounds."""
    tensors, pairs = inputs(SIZES[length], HEADS, length, dtype), pairs_of(SIZES[length], length, causal)
    pair = KERNELS[name], KERNELS["naive"]
    ratios = []
    for turn in range(rounds + 1):
        seconds = [run(kernel, tensors, pairs, train) for kernel in pair]
        ratios += [seconds[0] / seconds[1]] if turn else []
    return statistics.median(ratios)


def peak(name: str, length: int) -> str:
    """The peak memory of both passes of one head of 64, causal, in float32, of a fresh process, and of its tensors."""
    code = f"from benchmarks.attention_kernels import measure_peak; measure_peak({name!r}, {length})"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    process, tensors = (f"{float(number):,.0f} MiB" for number in done.stdout.split())
    return f"{process} | {tensors}"


def measure_peak(name: str, length: int) -> None:
    """Print by how much two passes raise this process's peak of memory, and what tensors take at once, in MiB."""
    torch.set_num_threads(1)
    run(KERNELS[name], inputs(1, 1, 16, torch.float32), pairs_of(1, 16, True), train=True)
    before = high_water()
    run(KERNELS[name], inputs(1, 1, length, torch.float32), pairs_of(1, length, True), train=True)
    after = high_water()
    with Alive() as alive:
        run(KERNELS[name], inputs(1, 1, length, torch.float32), pairs_of(1, length, True), train=True)
    print((after - before) / 1024, alive.peak / 2**20)


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            storage = x.untyped_storage() if isinstance(x, Tensor) else None
            if storage is not None and storage.data_ptr() not in self.bytes:
                self.bytes[storage.data_ptr()] = storage.nbytes()
                self.total += storage.nbytes()
                weakref.finalize(storage, self.forget, storage.data_ptr())
        self.peak = max(self.peak, self.total)
        return out

    def forget(self, pointer: int) -> None:
        self.total -= self.bytes.pop(pointer)


def high_water() -> int:
    """The most memory that this process ever held, in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def times(rounds: int) -> list[str]:
    lines = [
        "| precision, mask | keys | sdpa, forward | sdpa, both passes | flash, both passes |",
        "|---|---|---|---|---|",
    ]
    for dtype in (torch.bfloat16, torch.float32):
        for causal in (True, False):
            for length in SIZES:
                turns = rounds if length < 1024 else max(3, rounds // 3)
                found = [
                    ratio(name, length, dtype, causal, train, turns)
                    for name, train in (("sdpa", False), ("sdpa", True), ("flash", True))
                ]
                case = f"{str(dtype).removeprefix('torch.')}, {'causal' if causal else 'all'}"
                lines.append(f"| {case} | {length:,} | " + " | ".join(f"{x:.2f}" for x in found) + " |")
                print(lines[-1], flush=True)
    return lines


def memory() -> list[str]:
    lengths = (LONG // 2, LONG)
    lines = [
        "| kernel | " + " | ".join(f"T = {n:,} | tensors" for n in lengths) + " |",
        "|---|---|---|---|---|",
    ]
    for name in ("naive", "flash", "chunked", "sdpa"):
        lines.append(f"| `{name}` | " + " | ".join(peak(name, length) for length in lengths) + " |")
        print(lines[-1], flush=True)
    return lines


def page(rounds: int) -> str:
    machine = f"{platform.machine()}, PyTorch {torch.__version__}, one thread"
    parts = [
        "# Attention kernels on a CPU",
        "`python benchmarks/attention_kernels.py` writes this page. Machine: " + machine + ".",
        "## Time",
        f"Processor time as a multiple of the definition's (less than 1 is faster), {HEADS} heads of {WIDTH}, the "
        f"median of {rounds} alternated rounds (fewer from 1,024 keys on). Ratios, because other work ran beside.",
        "\n".join(times(rounds)),
        "## Memory",
        "By how much a forward and a backward pass raise the peak of a fresh process: one head of 64, causal, float32, "
        "inputs and gradients included; beside it, what its tensors take at the same time.",
        "\n".join(memory()),
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
