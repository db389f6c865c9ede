"""The Triton programs: in Triton's interpreter where there is no GPU, compiled for one, and on one (`-m gpu`)."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.enhancements.attention.test_flash import causal, drawn
from transformer.base.sockets import NO_POSITION, Layout, Mask, Pairs, Scoring
from transformer.enhancements import naive_attention, triton_attention
from transformer.enhancements.attention import routing, triton_flash

ROOT = Path(__file__).resolve().parents[3]
INTERPRETED = """
import logging
import torch
from tests.enhancements.attention.test_kernel_grid import Cell, check
from transformer.enhancements import triton_attention
from transformer.enhancements.attention.routing import logger

def refuse(record):
    raise AssertionError(record.getMessage())

logger.addFilter(refuse)  # nothing here may be left to the definition
logger.setLevel(logging.INFO)
torch.set_num_threads(1)
f32, f16 = torch.float32, torch.float16  # the interpreter multiplies no bfloat16
for cell in (
    Cell("causal", 70, None, (2, 2), False, None, False, 8, f32),
    Cell("all", 64, 40, (2, 1), False, 1.5, True, 5, f32),
    Cell("left", 41, None, (4, 2), False, None, True, 17, f32),
    Cell("right", 40, None, (3, 1), False, 1.5, False, 8, f16),
    Cell("empty", 40, 7, (2, 2), False, 1.5, True, 8, f32),
    Cell("packed", 50, None, (2, 1), False, None, False, 5, f32),
    Cell("window", 70, None, (2, 1), False, None, False, 8, f32),
    Cell("cached", 45, 20, (2, 1), False, None, True, 8, f32),
    Cell("cross", 7, None, (2, 2), False, 1.5, False, 8, f32),
    Cell("causal", 1, None, (2, 1), False, None, False, 8, f32),
):
    check(triton_attention, cell)
print("done")
"""
COMPILED = """
from triton.backends.compiler import GPUTarget
import triton
from triton.compiler import ASTSource
from src.transformer.enhancements.attention import triton_kernels as kernels

FLOATS = {"lse": "*fp32", "delta": "*fp32", "scale": "fp32", "cap": "fp32"}
INTEGERS = dict.fromkeys(("window", "t", "s", "h", "g"), "i32")
ARRAYS = dict.fromkeys(("q_at", "k_at", "real", "q_doc", "k_doc"), "*i32")
flags = ("CAUSAL", "WINDOWED", "PADDED", "PACKED", "ORDERED", "CAPPED", "SINKS")
for name in ("forwards", "backward_queries", "backward_keys"):
    program = getattr(kernels, name)
    constants = {flag: True for flag in flags if flag in program.arg_names}
    constants |= {"E": 256, "V": 256, "WIDE_E": 256, "WIDE_V": 256, "ROWS": 32, "COLUMNS": 32}
    types = {**FLOATS, **INTEGERS, **ARRAYS, **dict.fromkeys(constants, "constexpr")}
    signature = {argument: types.get(argument, "*bf16") for argument in program.arg_names}
    source = ASTSource(fn=program, signature=signature, constexprs=constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert binary.metadata.shared <= 99 * 1024, (name, binary.metadata.shared)
print("done")
"""


def run(code: str, **environment: str) -> None:
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=settings | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("done"), done.stdout + done.stderr


def test_the_programs_are_the_definition_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run(INTERPRETED, TRITON_INTERPRET="1")


def test_the_programs_compile_for_a_gpu_and_fit_its_memory(tmp_path: Path) -> None:
    """For an A100, without one: at the smallest tiles the widest heads leave room in 99 KiB, what any such GPU has."""
    pytest.importorskip("triton")
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


def test_what_they_cannot_compute_the_definition_does(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    routing._tell.cache_clear()
    q, k, v = (x.float() for x in drawn(1, 2, 6, 4))
    biased, plain, wide = causal(6), causal(6), torch.randn(1, 2, 6, 257)
    biased.bias = torch.zeros(1, 2, 6, 6)
    monkeypatch.setattr(triton_flash.kernels, "compiler", None)
    assert not triton_flash.has_triton("cuda")
    leave_to_definition(q, k, v, plain, Scoring(0.3))
    assert "triton is not installed (pip install transformer-from-scratch[gpu])" in caplog.text
    monkeypatch.setattr(triton_flash.kernels, "compiler", object())
    assert triton_flash.has_triton("cuda") and not triton_flash.has_triton("cpu")
    leave_to_definition(q, k, v, plain, Scoring(0.3))
    assert "the kernel triton computes by the definition: Triton's programs run on a GPU" in caplog.text
    monkeypatch.setattr(triton_flash, "has_triton", lambda device: True)
    leave_to_definition(q, k, v, biased, Scoring(0.3))
    assert "a dense bias is not read by these programs" in caplog.text
    leave_to_definition(q.double(), k.double(), v.double(), plain, Scoring(0.3))
    assert "these programs take float16, bfloat16 or float32, one for all inputs" in caplog.text
    leave_to_definition(wide, wide, v, plain, Scoring(0.3))
    assert "these programs take heads up to 256 wide" in caplog.text
    leave_to_definition(q.bfloat16(), k.bfloat16(), v.bfloat16(), plain, Scoring(0.3))
    assert "Triton's interpreter multiplies no bfloat16" in caplog.text
    leave_to_definition(q, k, v, plain, Scoring(0.3, dropout=0.1))
    assert "these programs have no dropout" in caplog.text


def leave_to_definition(*given: Any) -> None:
    results = []
    for kernel in (triton_attention, naive_attention):
        torch.manual_seed(0)
        results.append(kernel(*given))
    assert torch.equal(*results)


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16, 40, 64, 128, 256])
@pytest.mark.parametrize("case", ["causal", "window", "padded", "packed", "cached", "capped", "sinks"])
def test_the_programs_are_the_definition_on_a_gpu(dtype: torch.dtype, width: int, case: str) -> None:
    # by the package's other spelling, whose functions carry no checks: Triton compiles them from their text
    from src.transformer.base import sockets
    from src.transformer.enhancements.attention import naive, triton_flash

    torch.manual_seed(0)
    blank = torch.zeros(2, 300, dtype=torch.long, device="cuda")
    keys = sockets.Layout.of(blank)
    if case == "padded":
        keys = sockets.Layout.of(blank, (torch.arange(300) < torch.tensor([[300], [123]])).cuda())
    if case == "packed":
        keys = sockets.Layout.of(blank, documents=(torch.arange(300) // 70).expand(2, -1).cuda())
    queries = keys.select(torch.arange(200, 300, device="cuda").expand(2, -1)) if case == "cached" else keys
    mask = sockets.Mask(causal=True, window=50 if case == "window" else None)
    pairs = sockets.Pairs(queries, keys, mask, sockets.NO_POSITION)
    t = queries.positions.shape[1]
    shapes = [(2, 8, t, width), (2, 2, 300, width), (2, 2, 300, width), (2, 8, t, width), (8,)]
    inputs = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]

    def attend(kernel: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        q, k, v, slope, sinks = leaves
        scoring = sockets.Scoring(
            width**-0.5, 0.0, 20.0 if case == "capped" else None, sinks if case == "sinks" else None
        )
        out = kernel(q, k, v, pairs, scoring)
        out.backward(slope.detach())
        return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]

    assert triton_flash._why_not(*inputs[:3], pairs, sockets.Scoring(0.3)) is None
    truths, own = attend(naive.naive_attention, torch.float64), attend(naive.naive_attention, dtype)
    for truth, reference, result in zip(
        truths, own, attend(triton_flash.triton_attention, dtype), strict=True
    ):
        error, its = ((x - truth).abs().max().item() for x in (result, reference))
        size = truth.abs().max().item()
        assert error <= (2e-5 * max(1.0, size) if dtype == torch.float32 else 2 * its + 2**-8 * size)


@pytest.mark.gpu
def test_a_long_sequence_takes_little_memory_on_a_gpu() -> None:
    from src.transformer.base import sockets
    from src.transformer.enhancements.attention import triton_flash

    layout = sockets.Layout.of(torch.zeros(1, 32768, dtype=torch.long, device="cuda"))
    pairs = sockets.Pairs(layout, layout, sockets.Mask(causal=True), sockets.NO_POSITION)
    q, k, v = (torch.randn(1, 4, 32768, 64, device="cuda").bfloat16().requires_grad_() for _ in range(3))
    triton_flash.triton_attention(q, k, v, pairs, sockets.Scoring(0.125)).sum().backward()  # tunes
    torch.cuda.reset_peak_memory_stats()
    triton_flash.triton_attention(q, k, v, pairs, sockets.Scoring(0.125)).sum().backward()
    assert torch.cuda.max_memory_allocated() < 2**29  # one head's scores alone would take 2 GiB


def test_a_mask_of_the_lower_triangle_is_the_only_one_whose_loops_end_early() -> None:
    plain, packed = causal(6), Layout.of(torch.zeros(1, 6).long(), documents=torch.zeros(1, 6).long())
    q, k, v = (x.float() for x in drawn(1, 2, 6, 4))

    def ordered(pairs: Pairs) -> bool:
        return triton_flash._settings(q, k, v, pairs, Scoring(0.3))[1]["ORDERED"]

    assert ordered(plain) and ordered(causal(6, window=3))
    assert not ordered(Pairs(packed, packed, Mask(causal=True), NO_POSITION))
    assert not ordered(Pairs(plain.queries, replace(plain.queries), Mask(causal=True), NO_POSITION))
