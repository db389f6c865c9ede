"""DeltaNet and Gated DeltaNet: the delta rule, without and with decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.enhancements.attention import linear_references as references
from tests.enhancements.attention.linear_references import (
    HEADS,
    WIDTH,
    check_definition,
    context_of,
    randomized,
)
from transformer.base.sockets import Layout
from transformer.base.transformer import XavierConfig, transformer
from transformer.enhancements import delta_net, enhance, gated_delta_net
from transformer.enhancements.attention.delta_net import DeltaNet, DeltaNetConfig, delta_scan, unit
from transformer.enhancements.attention.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig
from transformer.enhancements.attention.recurrence import RecurrentState, Segments
from transformer.enhancements.initialization import GPT2Config
from transformer.training.optimizer import parameter_groups

each_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
ALONE = Segments(None, None)


def layout_of(length: int) -> Layout:
    return Layout(torch.arange(length)[None])


@each_precision
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_delta_net_is_its_definition(left: bool, dtype: torch.dtype, tolerance: float) -> None:
    module = randomized(DeltaNet(WIDTH, HEADS), dtype)
    check_definition(module, references.delta_net, dtype, tolerance, left=left)


@each_precision
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_gated_delta_net_is_its_definition(left: bool, dtype: torch.dtype, tolerance: float) -> None:
    module = randomized(GatedDeltaNet(WIDTH, HEADS, 3), dtype)
    check_definition(module, references.gated_delta_net, dtype, tolerance, left=left)


def test_the_rule_is_that_of_qwen3_next() -> None:
    """A second, independent implementation: `transformers`, token by token and in chunks."""
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    q, k = (torch.randn(2, 150, 3, 8) for _ in range(2))
    v, beta, decay = torch.randn(2, 150, 3, 6), torch.rand(2, 150, 3), -torch.rand(2, 150, 3)
    state = RecurrentState()
    mine = [x.transpose(1, 2) for x in (unit(q) / math.sqrt(8), unit(k), v)]
    out = delta_scan(*mine, decay.mT[..., None], beta.mT[..., None], ALONE, state).transpose(1, 2)
    for form in (qwen.torch_chunk_gated_delta_rule, qwen.torch_recurrent_gated_delta_rule):
        theirs, last = form(
            q,
            k,
            v,
            g=decay,
            beta=beta,
            initial_state=None,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        assert (out - theirs).abs().max() <= 2e-5
        assert (state.tensors["matrix"] - last).abs().max() <= 2e-5


# ---------------------------------------------------------------- what the rule does


def test_a_value_is_replaced_not_added() -> None:
    """With β = 1 the state holds under a key what was written last, where linear attention would hold a sum."""
    key = F.normalize(torch.randn(1, 1, 1, 8, dtype=torch.float64), dim=-1)
    v = torch.randn(1, 1, 5, 3, dtype=torch.float64)
    keys, one = key.expand(-1, -1, 5, -1), torch.ones(1, 1, 5, 1, dtype=torch.float64)
    out = delta_scan(keys, keys, v, torch.zeros_like(one), one, ALONE)
    assert (out - v).abs().max() <= 1e-14
    halves = delta_scan(keys, keys, v, torch.zeros_like(one), one / 2, ALONE)
    assert (halves[:, :, 1] - (v[:, :, 0] / 4 + v[:, :, 1] / 2)).abs().max() <= 1e-14


@pytest.mark.parametrize("made", [DeltaNet, lambda d, h: GatedDeltaNet(d, h, 6)], ids=["plain", "gated"])
def test_repeated_keys_over_a_long_row_stay_bounded(made: type[DeltaNet]) -> None:
    """Keys of length 1 and β < 1: no step stretches the state, even where one token fills the row. In float32."""
    module = randomized(made(16, 2), torch.float32)
    x = torch.randn(1, 1, 16).expand(1, 2000, 16).clone().requires_grad_()
    seen: list[torch.Tensor] = []
    module.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = module(x, context_of(layout_of(2000)))
    out.square().mean().backward()
    assert seen[0].abs().max() < 50 and x.grad is not None and x.grad.isfinite().all()


def test_unit_vectors_have_length_one_and_zero_stays_zero() -> None:
    x = torch.randn(7, 5)
    assert (unit(x).norm(dim=-1) - 1).abs().max() <= 1e-5
    zero = torch.zeros(2, 5, requires_grad=True)
    unit(zero).sum().backward()
    assert (unit(zero) == 0).all() and zero.grad is not None and zero.grad.isfinite().all()
    assert unit(x.bfloat16()).dtype == torch.float32


# ---------------------------------------------------------------- as parts


def test_first_steps_and_rates_are_mamba2s_and_no_initialization_touches_them() -> None:
    module = GatedDeltaNet(64, 500, 1)
    rate, step = module.A_log.exp(), F.softplus(module.dt_bias)
    assert rate.min() >= 1 and rate.max() <= 16 and 7.5 < rate.mean() < 9.5
    assert step.min() >= 0.00099 and step.max() <= 0.101
    assert -4.9 < step.log().mean() < -4.3  # (log 0.001 + log 0.1)/2 = −4.6
    before = {name: x.clone() for name, x in module.state_dict().items()}
    for initialization in (XavierConfig(), GPT2Config()):
        initialization.initialize(nn.ModuleList([module]))
        kept = {name for name, x in module.state_dict().items() if torch.equal(x, before[name])}
        assert kept == {"A_log", "dt_bias", "norm.weight", "convolution.weight"}
    decayed = {name for name, _ in parameter_groups(module, 0.1)[0]["params"]}
    assert decayed == {name for name in before if name.endswith("proj.weight")}


def test_widths_and_weights() -> None:
    """About 6d² weights for the gated one: keys ¾·d and values 3/2·d wide. 4d² for the plain one."""
    gated = GatedDeltaNetConfig(8).build(512)
    assert gated.k_proj.out_features == 384 and gated.v_proj.out_features == 768
    assert 6 * 512**2 < sum(p.numel() for p in gated.parameters()) < 6.1 * 512**2
    assert GatedDeltaNetConfig(3, d_head=7).build(10).k_proj.out_features == 21
    plain = DeltaNetConfig(8).build(512)
    assert 4 * 512**2 < sum(p.numel() for p in plain.parameters()) < 4.1 * 512**2


def test_the_enhancements_and_their_refusals() -> None:
    base = transformer(100, 16, n_heads=4, n_layers=2)
    for enhancement, part, name in (
        (delta_net(), DeltaNetConfig(4), "DeltaNet"),
        (gated_delta_net(), GatedDeltaNetConfig(4), "Gated DeltaNet"),
    ):
        changed = enhance(base, enhancement)
        assert changed.decoder.blocks[1].mixer == part and changed.encoder == base.encoder  # type: ignore[attr-defined]
        with pytest.raises(
            ValueError, match=f"^{name} reads from left to right, but this stack is not causal"
        ):
            part.build(16)(torch.randn(1, 4, 16), context_of(layout_of(4), causal=False))
    with pytest.raises(ValueError, match="d_model 8 cannot be split into n_heads 5.*nearest n_heads .* is 4"):
        DeltaNetConfig(5).build(8)


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (DeltaNetConfig(HEADS), HEADS * 4 * 4 + 3 * 3 * WIDTH),
        (GatedDeltaNetConfig(HEADS), HEADS * 3 * 6 + 3 * 4 * 36),
    ],
    ids=["plain", "gated"],
)
def test_the_state_does_not_grow(config: DeltaNetConfig, numbers: int) -> None:
    """A matrix for each head, and the last three inputs of the convolution."""
    module, sizes = config.build(WIDTH), set()
    state = module.initial_state()
    for length in (5, 1, 64, 1, 200):
        module(torch.randn(2, length, WIDTH), context_of(layout_of(length)), state)
        sizes.add(sum(x.nbytes for x in state.tensors.values()))
    assert sizes == {2 * numbers * 4}
