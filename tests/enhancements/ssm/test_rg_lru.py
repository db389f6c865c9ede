"""Griffin's recurrent block: its recurrence in every form, the block, its first weights, and what makes it safe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.enhancements.attention.linear_references import (
    WIDTH,
    array,
    check_definition,
    context_of,
    randomized,
)
from tests.enhancements.ssm import definitions
from tests.enhancements.ssm.cases import agree, documents, slopes
from transformer.base.sockets import Layout
from transformer.base.transformer import transformer
from transformer.enhancements import enhance, real_gated_recurrence
from transformer.enhancements.attention.recurrence import RecurrentState, Segments
from transformer.enhancements.initialization import GPT2Config
from transformer.enhancements.ssm.initialization import MambaInitializationConfig
from transformer.enhancements.ssm.linear_recurrence import (
    associative_recurrence,
    lean_recurrence,
    run_recurrence,
    sequential_recurrence,
)
from transformer.enhancements.ssm.rg_lru import STEEPEST, RGLRUConfig, bounded_root
from transformer.models import BERT
from transformer.training.optimizer import parameter_groups

FORMS: tuple[Callable[..., Any], ...] = (sequential_recurrence, associative_recurrence, lean_recurrence)
BATCH, CHANNELS = 2, 5


def inputs(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """a, u and the state before them, with gradients; some decays are exactly 0 or 1."""
    a = torch.rand(BATCH, length, CHANNELS, dtype=torch.float64) ** 0.2
    a[:, 1::7], a[:, 3::11] = 1.0, 0.0
    u = torch.randn(BATCH, length, CHANNELS, dtype=torch.float64)
    initial = torch.randn(BATCH, CHANNELS, dtype=torch.float64)
    return [y.to(dtype).requires_grad_() for y in (a, u, initial)]


# ---------------------------------------------------------------- the recurrence


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_is_the_definition_in_value_and_gradient(form: Callable[..., Any]) -> None:
    for length in (1, 2, 7, 131):
        tensors = inputs(length)
        out, last = form(*tensors)
        dy, d_last = torch.randn_like(out), torch.randn_like(last)
        found = [out, last, *torch.autograd.grad([out, last], tensors, [dy, d_last])]
        rows = []
        for b in range(BATCH):
            expected, backward = definitions.linear_recurrence(*(array(y[b]) for y in tensors))
            rows.append([expected, expected[-1], *backward(array(dy[b]), array(d_last[b]))])
        for ours, theirs in zip(found, zip(*rows, strict=True), strict=True):
            assert np.abs(array(ours) - np.stack(theirs)).max() <= 1e-12


def test_a_hundred_random_chunkings_are_the_whole() -> None:
    """Calls of any lengths, each in any form, that hand on the state: values and gradients, and of packed rows."""
    rng = np.random.default_rng(0)
    length = 24
    for _ in range(100):
        *given, state = tensors = inputs(length)
        expected = slopes(*sequential_recurrence(*tensors), tensors)
        outputs, at = [], 0
        while at < length:
            size = int(min(length - at, rng.choice([1, 1, 2, 3, 5, 8, 13])))
            form = FORMS[rng.integers(len(FORMS))]
            out, state = form(*(y[:, at : at + size] for y in given), state)
            outputs.append(out)
            at += size
        agree(slopes(torch.cat(outputs, dim=1), state, tensors), expected, 1e-11)


def test_forms_agree_in_single_precision() -> None:
    tensors = inputs(513, torch.float32)
    exact = list(sequential_recurrence(*(y.detach().double() for y in tensors)))
    for form in FORMS:
        agree(list(form(*tensors)), exact, 2e-6)


def test_padding_and_other_documents_are_as_if_not_there() -> None:
    """In outputs, gradients and the last state; other documents to the last bit."""
    log_decay, u = -torch.rand(BATCH, 60, CHANNELS).double(), torch.randn(BATCH, 60, CHANNELS).double()
    u.requires_grad_()
    real, runs, state = torch.rand(BATCH, 60) < 0.6, documents(60), RecurrentState()
    out = run_recurrence(log_decay, u, Segments(real, None), state)
    assert (torch.autograd.grad(out[real].sum(), u)[0][~real] == 0).all()
    for b in range(BATCH):
        alone = RecurrentState()
        kept = [y[b : b + 1, real[b]] for y in (log_decay, u)]
        agree([out[b : b + 1, real[b]]], [run_recurrence(*kept, Segments(None, None), alone)], 1e-12)
        agree([state.tensors["states"][b : b + 1]], [alone.tensors["states"]], 1e-12)
    packed = run_recurrence(log_decay, u, Segments(None, runs), None)
    for number in range(int(runs[0].max()) + 1):
        here = runs[0] == number
        (gradient,) = torch.autograd.grad(packed[0, here].sum(), u, retain_graph=True)
        assert (gradient[0, ~here] == 0).all() and (gradient[0, here] != 0).all()


def test_little_is_kept_for_the_backward_pass() -> None:
    """a and h, and the state before them: two numbers for each channel and token."""
    a, u = torch.rand(1, 512, 64).requires_grad_(), torch.randn(1, 512, 64).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y.nbytes) or y, lambda y: y):
        lean_recurrence(a, u, torch.zeros(1, 64))
    assert sum(kept) == 4 * 64 * (2 * 512 + 1)


# ---------------------------------------------------------------- the block


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_the_block_is_its_definition(left: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Rows of 70, 33 and 1 tokens, with channels that keep a half and channels that keep 0.99 of their state."""
    config = RGLRUConfig(60, 4, 5) if left else RGLRUConfig(n_heads=3)
    module = randomized(config.build(WIDTH), dtype)
    with torch.no_grad():
        module.recurrence.decay -= torch.linspace(2, 7, len(module.recurrence.decay), dtype=dtype)
    check_definition(module, definitions.rg_lru, dtype, tolerance, left=left)


def test_first_decays_are_uniform_and_no_initialization_overwrites_them() -> None:
    for rule in (GPT2Config(), MambaInitializationConfig()):
        module = RGLRUConfig(n_heads=4).build(2048)
        rule.initialize(module)
        kept = torch.exp(-8 * F.softplus(module.recurrence.decay))
        assert kept.min() > 0.9 - 1e-4 and kept.max() < 0.999 + 1e-4
        assert kept.mean().item() == pytest.approx(0.9495, abs=0.003)
        assert kept.std().item() == pytest.approx(0.099 / 12**0.5, rel=0.05)
        for gate in (module.recurrence.input_gate, module.recurrence.recurrence_gate):
            assert gate.weight.std().item() == pytest.approx(512**-0.5, rel=0.01) and (gate.bias == 0).all()
    decayed = {name for name, _ in parameter_groups(module, 0.1)[0]["params"]}
    assert decayed == {"gate_proj.weight", "in_proj.weight", "out_proj.weight"}


def test_the_first_token_of_a_document_is_written_whole_and_only_that_one() -> None:
    """Where i = 1 and the decay is next to none, √(1 − a²) would write next to nothing."""
    module = RGLRUConfig(n_heads=2).build(8).double()
    with torch.no_grad():
        module.recurrence.decay.fill_(-20.0)
        module.recurrence.input_gate.bias.fill_(50.0)
    x = torch.randn(1, 6, 8).double()
    begins = torch.tensor([[True, False, False, True, False, False]])
    h = module.recurrence(x, begins, Segments(None, torch.tensor([[0, 0, 0, 1, 1, 1]])))
    for begin in (0, 3):
        assert torch.allclose(h[:, begin], x[:, begin])
        assert (h[:, begin + 2] - h[:, begin]).abs().max() < 0.01


def test_gradients_are_finite_where_nothing_fades() -> None:
    x = torch.tensor([0.0, 1e-12, 0.04]).requires_grad_()
    (gradient,) = torch.autograd.grad(bounded_root(x).sum(), x)
    assert gradient.tolist() == pytest.approx([STEEPEST, STEEPEST, 2.5])
    module = RGLRUConfig(n_heads=2).build(8)
    with torch.no_grad():
        module.recurrence.decay.fill_(-200.0)  # softplus is 0, so a is 1 and the root's argument 0
    module(torch.randn(1, 6, 8), context_of(Layout(torch.arange(6)[None]))).sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_the_recurrence_is_in_single_precision_whatever_the_model_is() -> None:
    """State and sums in float32; a thousand tokens under autocast and in bfloat16 stay near."""
    module, x = RGLRUConfig(n_heads=2).build(24), torch.randn(2, 1000, 24)
    context = context_of(Layout(torch.arange(1000)[None]))
    exact = module.double()(x.double(), context)
    for dtype in (torch.float32, torch.bfloat16):
        state = module.to(dtype).initial_state()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            coarse = module(x.to(dtype), context, state)
        assert state.tensors["states"].dtype == torch.float32
        assert (coarse - exact).abs().max() <= 0.03 * exact.abs().max()


def test_a_state_of_one_size_that_beams_may_select() -> None:
    module, sizes = RGLRUConfig(n_heads=2).build(24), set()
    state = module.initial_state()
    for length in (5, 1, 64, 0, 1):
        module(torch.randn(2, length, 24), context_of(Layout(torch.arange(length)[None])), state)
        sizes.add(sum(y.numel() for y in state.tensors.values()))
    assert sizes == {2 * 4 * 24}
    before = {name: y.clone() for name, y in state.tensors.items()}
    state.select(torch.tensor([1, 1, 0]))
    assert all(torch.equal(y, before[name][[1, 1, 0]]) for name, y in state.tensors.items())


def test_an_enhancement_replaces_causal_attention() -> None:
    plain = transformer(100, 24, n_heads=4, n_layers=2)
    changed = enhance(plain, real_gated_recurrence())
    assert changed.encoder == plain.encoder
    assert {block.mixer for block in changed.decoder.blocks} == {RGLRUConfig(n_heads=4)}
    with pytest.raises(ValueError, match="reads from left to right, and an encoder reads both ways"):
        enhance(BERT(20, d_model=24, n_heads=2, n_layers=1).config, real_gated_recurrence())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: RGLRUConfig(n_heads=5).build(12),
            r"^an inner width of 12 cannot be split into n_heads 5 equal blocks; .* that divides it is [46]$",
        ),
        (
            lambda: RGLRUConfig().build(8)(
                torch.randn(1, 4, 8), context_of(Layout(torch.arange(4)[None]), causal=False)
            ),
            "Griffin's recurrence reads from left to right, but this stack is not causal",
        ),
    ],
)
def test_refusals(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()
