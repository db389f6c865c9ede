"""Which kernel computes what: the table of the docs, what is left to the definition, and the best for a case."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.enhancements.attention.test_flash import causal, drawn
from tests.enhancements.test_kernels import GivenBias
from transformer.base.sockets import Execution, Kernel, Mask, Pairs, Scoring
from transformer.enhancements import (
    KERNELS,
    SWITCHES,
    best_attention,
    flash_attention,
    flex_attention,
    naive_attention,
    sdpa_attention,
)
from transformer.enhancements.attention import flex, kernels, routing, triton_flash
from transformer.run.config import ExecutionConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "enhancements" / "kernels.md"


@pytest.fixture(autouse=True)
def _heard_anew(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Each test hears the reasons again: they are told once a process."""
    routing._tell.cache_clear()
    caplog.set_level(logging.INFO)
    yield
    routing._tell.cache_clear()


def cases() -> dict[str, tuple[Pairs, Scoring]]:
    """A case for each column of the page's table."""
    plain, sinks = causal(6), torch.zeros(2)
    bias = GivenBias(torch.zeros(1, 2, 6, 6))
    return {
        "window": (causal(6, window=3), Scoring(0.3)),
        "bias": (Pairs(plain.queries, plain.keys, Mask(causal=True), bias), Scoring(0.3)),
        "soft cap": (plain, Scoring(0.3, soft_cap=2.0)),
        "sinks": (plain, Scoring(0.3, sinks=sinks)),
        "dropout": (plain, Scoring(0.3, dropout=0.5)),
    }


def table() -> dict[str, dict[str, str]]:
    """The page's table: kernel → column → entry."""
    rows = [
        [entry.strip() for entry in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    header, body = rows[0], rows[2:]
    return {row[0].strip("`"): dict(zip(header[1:], row[1:], strict=True)) for row in body}


def test_the_table_of_the_page_says_what_each_kernel_does(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """✓ is computed by the kernel, – by the definition; Triton's is asked as on a GPU that it has."""
    assert list(table()) == list(KERNELS)
    monkeypatch.setattr(triton_flash.kernels, "compiler", object())
    monkeypatch.setattr(triton_flash, "has_triton", lambda device: True)
    for name, kernel in KERNELS.items():
        for column, (pairs, scoring) in cases().items():
            q, k, v = (x.detach().float() for x in drawn(1, 2, 6, 4))
            if name == "flex":  # its backward pass needs a GPU
                left = flex._why_not(q, k, v, pairs, scoring) is not None
            elif name == "triton":
                left = triton_flash._why_not(q, k, v, pairs, scoring) is not None
            else:
                caplog.clear()
                routing._tell.cache_clear()
                kernel(q, k, v, pairs, scoring)
                left = "computes by the definition" in caplog.text
            assert table()[name][column] == ("–" if left else "✓"), (name, column)


def test_the_section_of_a_configuration_names_every_kernel() -> None:
    choices = re.findall(r"'(\w+)'", str(ExecutionConfig.__annotations__["kernel"]).replace('"', "'"))
    assert choices == ["auto", *KERNELS]


# ---------------------------------------------------------------- left to the definition


def left_to_definition(kernel: Kernel, *given: Any) -> None:
    results = []
    for each in (kernel, naive_attention):
        torch.manual_seed(0)
        results.append(each(*given))
    assert torch.equal(*results)


def test_what_flex_cannot_compute_the_definition_does(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v = drawn(1, 2, 6, 4)
    left_to_definition(flex_attention, q, k, v, causal(6), Scoring(0.3))
    assert "the kernel flex computes by the definition: flex attention has no backward pass on" in caplog.text
    q, k, v = (x.detach() for x in (q, k, v))
    left_to_definition(flex_attention, q, k, v, causal(6), Scoring(0.3, dropout=0.5))
    assert "the kernel flex computes by the definition: flex attention has no dropout" in caplog.text
    x, pairs = torch.zeros(1, 2, 6, 8, device="meta"), causal(6)
    pairs.bias = torch.zeros(1, 2, 6, 6, requires_grad=True)
    assert (
        flex._why_not(x, x, x, pairs, Scoring(0.3)) == "the gradient of a bias is not asked of flex attention"
    )


def test_flex_learns_nothing_about_sinks_and_bias_on_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v = (x.detach() for x in drawn(1, 2, 6, 4))
    sinks = torch.zeros(2, requires_grad=True)
    flex_attention(q, k, v, causal(6), Scoring(0.3, sinks=sinks)).sum().backward()
    assert sinks.grad is not None and "no backward pass" in caplog.text
    with torch.no_grad():
        caplog.clear()
        flex_attention(q, k, v, causal(6), Scoring(0.3, sinks=sinks))
    assert not caplog.text


def test_sdpa_leaves_soft_caps_to_the_definition(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v = drawn(1, 2, 6, 4)
    for _ in range(2):
        left_to_definition(sdpa_attention, q, k, v, causal(6), Scoring(0.3, soft_cap=1.0))
    assert caplog.text.count("the kernel sdpa computes by the definition: PyTorch's kernels have no") == 1


# ---------------------------------------------------------------- the best


class OnGPU:
    """What `_best` asks of a tensor, as of one on a GPU."""

    def __init__(self, x: Tensor) -> None:
        self.device, self.dtype, self.shape = torch.device("cuda"), x.dtype, x.shape


def test_the_best_kernel_for_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Kernel] = []
    for name in ("naive_attention", "sdpa_attention", "flash_attention"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *given, kernel=kernel: chosen.append(kernel) or kernel(*given)
        )

    def best(length: int, dtype: torch.dtype, scoring: Scoring, window: int | None = None) -> Kernel:
        q = torch.zeros(1, 1, length, 2, dtype=dtype)
        chosen.clear()
        best_attention(q, q, q, causal(length, window), scoring)
        return chosen[0]

    plain, capped = Scoring(0.3), Scoring(0.3, soft_cap=1.0)
    for dtype in (torch.float32, torch.float64):
        assert best(17, dtype, plain) is best(1025, dtype, plain) is sdpa_attention
    assert best(17, torch.bfloat16, plain) is best(512, torch.bfloat16, plain) is naive_attention
    assert best(513, torch.bfloat16, plain) is sdpa_attention
    assert best(1024, torch.bfloat16, plain, window=8) is naive_attention  # no plain triangle
    assert best(1025, torch.bfloat16, plain, window=8) is sdpa_attention
    assert best(512, torch.float32, capped) is naive_attention
    assert best(513, torch.float32, capped) is flash_attention
    with torch.autocast("cpu", torch.bfloat16):
        assert best(17, torch.float32, plain) is naive_attention


def test_the_best_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the package's other spelling, which takes what only pretends to be a tensor."""
    from src.transformer.enhancements.attention import kernels

    x: Any = OnGPU(torch.zeros(1, 2, 6, 4))

    def best(scoring: Any, bias: Tensor | None = None) -> str:
        pairs: Any = causal(6)
        pairs.bias = bias
        return kernels._best(x, x, pairs, scoring).__name__

    ours, theirs = "triton_attention", "sdpa_attention"
    monkeypatch.setattr(kernels, "has_triton", lambda device: True)
    assert best(Scoring(0.3)) == best(Scoring(0.3, dropout=0.1)) == theirs
    assert best(Scoring(0.3, soft_cap=1.0)) == best(Scoring(0.3, sinks=torch.zeros(2))) == ours
    assert best(Scoring(0.3, soft_cap=1.0), torch.zeros(1, 2, 6, 6)) == theirs
    assert best(Scoring(0.3, dropout=0.1, soft_cap=1.0)) == theirs
    monkeypatch.setattr(kernels, "has_triton", lambda device: False)
    assert best(Scoring(0.3, soft_cap=1.0)) == theirs


def test_the_switch_stands_for_the_best() -> None:
    execution = SWITCHES["use_flash_attention"].execution
    assert execution is not None
    assert execution(Execution(naive_attention)).kernel is best_attention


def test_kernels_that_work_tile_by_tile_are_called_from_a_compiled_model() -> None:
    """By the package's other spelling: the checks of shapes cannot be compiled."""
    from src.transformer.base.sockets import NO_POSITION, Layout, Mask, Pairs, Scoring
    from src.transformer.enhancements import best_attention, chunked_attention, flash_attention

    torch._dynamo.reset()
    layout = Layout.of(torch.zeros(1, 6).long())
    pairs = Pairs(layout, layout, Mask(causal=True), NO_POSITION)
    x = torch.randn(1, 2, 6, 4)
    expected = flash_attention(x + 1, x, x, pairs, Scoring(0.3)) * 2
    for kernel in (flash_attention, chunked_attention):
        compiled = torch.compile(
            lambda x, kernel=kernel: kernel(x + 1, x, x, pairs, Scoring(0.3)) * 2, backend="eager"
        )
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-6)
    best = torch.compile(
        lambda x: best_attention(x + 1, x, x, pairs, Scoring(0.3)) * 2, backend="eager", fullgraph=True
    )
    torch.testing.assert_close(best(x), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_flex_attention_compiled_is_the_definition() -> None:
    """As on a GPU, with PyTorch's compiler for CPUs, which can do the forward pass."""
    from src.transformer.base.sockets import NO_POSITION, Layout, Mask, Pairs, Scoring
    from src.transformer.enhancements import flex_attention, naive_attention

    torch._dynamo.reset()
    layout = Layout.of(torch.zeros(2, 40).long(), torch.arange(40) < torch.tensor([[40], [23]]))
    pairs = Pairs(layout, layout, Mask(causal=True), NO_POSITION)
    q, k = torch.randn(2, 4, 40, 16), torch.randn(2, 2, 40, 16)
    compiled = torch.compile(flex_attention)
    for scoring in (Scoring(0.3, soft_cap=2.0), Scoring(0.3, sinks=torch.zeros(4))):  # sinks: the definition
        given = (q, k, k, pairs, scoring)
        torch.testing.assert_close(compiled(*given), naive_attention(*given), rtol=0, atol=2e-5)
