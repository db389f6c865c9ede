"""The Triton programs of Mamba's scan: in Triton's interpreter, compiled for a GPU without one, and on one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.enhancements.attention.test_triton import run
from tests.enhancements.ssm.cases import agree, documents, inputs, slopes
from transformer.enhancements.ssm import triton_scan
from transformer.enhancements.ssm.forms import SCANS, chunked_scan

INTERPRETED = """
import torch
from tests.enhancements.ssm.cases import agree, documents, inputs, slopes
from transformer.enhancements.ssm import triton_scan
from transformer.enhancements.ssm.scan import sequential_scan

torch.set_num_threads(1)
for length, packed, block in ((1, False, 32), (45, True, 4)):  # the interpreter is slow
    triton_scan.BLOCK = block
    tensors, runs = inputs("mamba", length, torch.float32), documents(length) if packed else None
    *given, initial = tensors
    assert triton_scan.why_not(*given) is None
    found = slopes(*triton_scan.triton_selective_scan(*given, runs, initial), tensors)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    agree([x.double() for x in found], slopes_of_wide(wide, runs), 2e-5)
print("done")
""".replace("slopes_of_wide(wide, runs)", "slopes(*sequential_scan(*wide[:-1], runs, wide[-1]), wide)")
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from src.transformer.enhancements.ssm import triton_programs as programs

for name in ("forwards", "backwards"):
    program = getattr(programs, name)
    constants = {"PACKED": True, "N": 16, "WIDE_N": 16, "CHUNK": 32, "BLOCK": 32}
    types = {"t": "i32", "i": "i32", **dict.fromkeys(constants, "constexpr")}
    signature = {argument: types.get(argument, "*fp32") for argument in program.arg_names}
    source = ASTSource(fn=program, signature=signature, constexprs=constants)
    triton.compile(source, target=GPUTarget("cuda", 80, 32))
print("done")
"""


def test_the_programs_are_the_definition_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run(INTERPRETED, TRITON_INTERPRET="1")


def test_the_programs_compile_for_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


def test_what_they_cannot_compute_another_form_does(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    triton_scan._tell.cache_clear()
    *given, initial = inputs("mamba", 9, torch.float32)
    expected = chunked_scan(*given, None, initial)
    monkeypatch.setattr(triton_scan.programs, "compiler", None)
    assert torch.equal(SCANS["triton"](*given, None, initial)[0], expected[0])
    assert "the scan triton computes chunk by chunk: triton is not installed" in caplog.text
    monkeypatch.setattr(triton_scan.programs, "compiler", object())
    assert triton_scan.has_triton("cuda") and not triton_scan.has_triton("cpu")
    assert triton_scan.why_not(*given) == "Triton's programs run on a GPU"
    monkeypatch.setattr(triton_scan, "has_triton", lambda device: True)
    assert triton_scan.why_not(*given) is None
    assert triton_scan.why_not(*inputs("mamba2", 9)[:-1]) == "these programs are for Mamba's shapes"
    assert triton_scan.why_not(*inputs("mamba", 9)[:-1]) == "these programs compute in float32"


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
def test_the_programs_are_the_definition_on_a_gpu(packed: bool) -> None:
    from src.transformer.enhancements.ssm.scan import sequential_scan
    from src.transformer.enhancements.ssm.triton_scan import triton_selective_scan

    tensors, runs = inputs("mamba", 300, torch.float32), documents(300) if packed else None
    wide = [x.detach().double().requires_grad_() for x in tensors]
    expected = slopes(*sequential_scan(*wide[:-1], runs, wide[-1]), wide)
    leaves = [x.detach().cuda().requires_grad_() for x in tensors]
    found = triton_selective_scan(*leaves[:-1], None if runs is None else runs.cuda(), leaves[-1])
    out, last = (x.cpu() for x in found)
    agree([x.cpu().double() for x in slopes(out, last, leaves)], expected, 2e-5)
