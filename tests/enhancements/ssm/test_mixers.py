"""S4D, Mamba and Mamba-2 as mixers: against their papers in NumPy, their first weights, state and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.enhancements.attention.linear_references import WIDTH, check_definition, context_of, randomized
from tests.enhancements.ssm import definitions
from transformer.base.normalization import NoNormConfig
from transformer.base.sockets import Layout, MixerConfig
from transformer.base.transformer import transformer
from transformer.enhancements import (
    SCANS,
    enhance,
    s4d,
    selective_state_space,
    state_space_duality,
)
from transformer.enhancements.initialization import GPT2Config
from transformer.enhancements.normalization.rms_norm import RMSNormConfig
from transformer.enhancements.ssm.initialization import MambaInitializationConfig
from transformer.enhancements.ssm.mamba import MambaConfig
from transformer.enhancements.ssm.mamba2 import GatedRMSNorm, Mamba2Config
from transformer.enhancements.ssm.s4d import RULES, S4DConfig, frequencies
from transformer.models import BERT, GPT, build
from transformer.training.optimizer import parameter_groups

SIZES: dict[str, Any] = {"vocab_size": 20, "d_model": 24, "n_heads": 2, "n_layers": 2, "max_seq_len": 200}
PARTS: dict[str, MixerConfig] = {
    "s4d": S4DConfig(8),
    "mamba": MambaConfig(),
    "mamba2": Mamba2Config(d_state=8, d_head=12),
}
each_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
each_dtype = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)


def layout_of(length: int) -> Layout:
    return Layout(torch.arange(length)[None])


# ---------------------------------------------------------------- the definitions


@each_dtype
@pytest.mark.parametrize("inner", [False, True], ids=["plain", "inner norm"])
def test_mamba_is_its_definition(inner: bool, dtype: torch.dtype, tolerance: float) -> None:
    norm = RMSNormConfig() if inner else NoNormConfig()
    config = MambaConfig(60, 6, 5, bias=inner, conv_bias=not inner, inner_norm=norm)
    module = randomized(config.build(WIDTH), dtype)
    with torch.no_grad():
        module.x_proj.weight *= 0.3  # large outputs would leave differences few digits
    check_definition(module, lambda x, w: definitions.mamba(x, w, 6), dtype, tolerance, left=inner)


@each_dtype
@pytest.mark.parametrize("groups", [1, 3])
def test_mamba2_is_its_definition(groups: int, dtype: torch.dtype, tolerance: float) -> None:
    config = Mamba2Config(96, 5, 8, groups, bias=groups == 3, epsilon=1e-3)
    module = randomized(config.build(WIDTH), dtype)
    check_definition(
        module, lambda x, w: definitions.mamba2(x, w, 5, groups, 1e-3), dtype, tolerance, left=groups == 3
    )


@each_dtype
@pytest.mark.parametrize("discretization", RULES)
def test_s4d_is_its_definition(discretization: Any, dtype: torch.dtype, tolerance: float) -> None:
    module = randomized(S4DConfig(6, "lin", discretization).build(WIDTH), dtype)
    with torch.no_grad():
        module.A_log -= 1.0
    check_definition(module, lambda x, w: definitions.s4d(x, w, discretization), dtype, tolerance)


def test_the_two_discretizations_meet_as_steps_shrink() -> None:
    A = torch.complex(-torch.rand(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64))
    for step, bound in ((1e-1, 1e-2), (1e-3, 1e-8)):
        first, second = (rule(torch.full((3, 1), step, dtype=torch.float64), A) for rule in RULES.values())
        assert max((a - b).abs().max().item() for a, b in zip(first, second, strict=True)) < bound


def test_the_frequencies_of_s4d() -> None:
    assert frequencies("lin", 6).tolist() == pytest.approx([0, math.pi, 2 * math.pi])
    assert frequencies("inv", 6).tolist() == pytest.approx([6 / math.pi * (6 / n - 1) for n in (1, 3, 5)])
    module = S4DConfig(6).build(3)
    assert (-module.A_log.exp()).unique().tolist() == pytest.approx([-0.5])


# ---------------------------------------------------------------- first weights


@pytest.mark.parametrize("rule", [GPT2Config(), MambaInitializationConfig()], ids=lambda rule: rule.kind)
def test_no_initialization_overwrites_the_steps_and_decays(rule: Any) -> None:
    """Steps are log-uniform in (0.001, 0.1), A is −1 … −n or in (−16, −1), D is 1, whatever the model's rule."""
    for mixer in (MambaConfig(), Mamba2Config(d_head=1)):
        module = mixer.build(512)
        rule.initialize(module)
        bias = module.dt_proj.bias if isinstance(mixer, MambaConfig) else module.dt_bias
        steps = F.softplus(bias.detach()).log()
        low, high = math.log(0.001), math.log(0.1)
        assert low - 1e-3 <= steps.min() and steps.max() <= high + 1e-3
        assert steps.mean().item() == pytest.approx((low + high) / 2, abs=0.15)
        assert steps.std().item() == pytest.approx((high - low) / 12**0.5, rel=0.1)
        assert (module.D == 1).all()
    mamba, two = MambaConfig().build(512), Mamba2Config(d_head=1).build(512)
    rule.initialize(mamba)
    assert torch.allclose(mamba.A_log.exp(), torch.arange(1.0, 17.0).expand(1024, -1))
    assert mamba.dt_proj.weight.abs().max().item() == pytest.approx(32**-0.5, rel=0.01)
    decays = two.A_log.exp()
    assert decays.min() >= 1 and decays.max() <= 16


def test_first_weights_of_the_maps() -> None:
    model = GPT(**SIZES)
    config = enhance(model.config, selective_state_space())
    made = build(config.__class__(**{**vars(config), "initialization": MambaInitializationConfig()}))
    block = made.stack.blocks[0]
    outputs = 4  # two mixers, two feed-forward networks
    mixer = block.mixer.branch
    for linear, scale in ((mixer.in_proj, 1.0), (mixer.x_proj, 1.0), (mixer.out_proj, outputs**-0.5)):
        bound = scale * linear.in_features**-0.5
        largest = linear.weight.abs().max()
        assert 0.9 < largest / bound <= 1
    assert (block.feed_forward.branch.up_proj.bias == 0).all()
    assert made.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)


@each_part
def test_weight_decay_pulls_at_maps_only(part: MixerConfig) -> None:
    groups = parameter_groups(part.build(24), 0.1)
    decayed = {name for name, _ in groups[0]["params"]}
    assert decayed and all(name.endswith("_proj.weight") and name != "dt_proj.weight" for name in decayed)
    rest = {name for name, _ in groups[1]["params"]}
    assert {"A_log", "D"} <= rest


# ---------------------------------------------------------------- as parts of a model


@pytest.mark.parametrize("enhancement", [s4d(8), selective_state_space(4), state_space_duality(8, 6)])
def test_an_enhancement_replaces_causal_attention(enhancement: Any) -> None:
    plain = transformer(100, 24, n_heads=4, n_layers=2)
    changed = enhance(plain, enhancement)
    assert changed.encoder == plain.encoder
    assert {block.mixer.kind for block in changed.decoder.blocks} <= set(PARTS)
    with pytest.raises(ValueError, match="reads from left to right, and an encoder reads both ways"):
        enhance(BERT(**SIZES).config, enhancement)


@each_part
def test_every_choice_of_a_form_gives_the_same_model(part: MixerConfig) -> None:
    module, x = randomized(part.build(24)), torch.randn(2, 40, 24, dtype=torch.float64)
    context = context_of(layout_of(40))
    expected = module(x, context)
    for form in SCANS.values():
        chosen = context_of(layout_of(40))
        object.__setattr__(chosen.execution, "scan", form)
        assert (module(x, chosen) - expected).abs().max() <= 1e-11


@each_part
def test_a_state_of_one_size_that_beams_may_select(part: MixerConfig) -> None:
    module, sizes = part.build(24), set()
    state = module.initial_state()
    for length in (5, 1, 64, 0, 1, 100):
        module(torch.randn(2, length, 24), context_of(layout_of(length)), state)
        sizes.add(sum(y.nbytes for y in state.tensors.values()))
    assert len(sizes) == 1
    before = {name: y.clone() for name, y in state.tensors.items()}
    state.select(torch.tensor([1, 1, 0]))
    assert all(torch.equal(y, before[name][[1, 1, 0]]) for name, y in state.tensors.items())


@each_part
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16 weights", "autocast"])
def test_coarse_precision_is_near_and_steps_agree(part: MixerConfig, dtype: torch.dtype) -> None:
    model = GPT(**SIZES)
    config = model.config
    blocks = tuple(block.__class__(**{**vars(block), "mixer": part}) for block in config.stack.blocks)
    stack = config.stack.__class__(**{**vars(config.stack), "blocks": blocks})
    model = build(config.__class__(**{**vars(config), "stack": stack})).eval()
    tokens, real = torch.randint(20, (2, 90)), torch.arange(90) < torch.tensor([[90], [70]])
    exact = model(tokens, real)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        coarse, state = model.to(dtype), model.initial_state()
        whole = coarse(tokens, real)
        pieces = zip(tokens.split([80, 1, 9], 1), real.split([80, 1, 9], 1), strict=True)
        steps = torch.cat([coarse.decode(piece, state, here) for piece, here in pieces], dim=1)
    for found in (whole, steps):
        assert (found - exact)[real].abs().max() <= 0.06 * exact.abs().max()


def test_the_gate_comes_before_the_norm() -> None:
    norm, x, gate = GatedRMSNorm(6, 2, 1e-5), torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    out = norm(x, gate)
    rms = out.unflatten(2, (2, 3)).square().mean(-1)
    assert (rms - 1).abs().max() < 1e-2  # each group is of length 1 after the gate, not before it


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: S4DConfig(7), "d_state 7 is odd, and states come in conjugate pairs; take 8"),
        (
            lambda: Mamba2Config(d_head=7).build(12),
            "24 cannot be split into heads of d_head 7 .*a multiple of 7$",
        ),
        (
            lambda: Mamba2Config(d_head=4, n_groups=4).build(12),
            "in n_groups 4 equal groups; .*a multiple of 16$",
        ),
        (
            lambda: MambaConfig().build(8)(torch.randn(1, 4, 8), context_of(layout_of(4), causal=False)),
            "Mamba reads from left to right, but this stack is not causal",
        ),
    ],
)
def test_refusals(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()
