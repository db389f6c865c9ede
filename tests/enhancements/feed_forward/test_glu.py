"""Gated feed-forward networks: values and gradients, widths at equal parameters, initialization, speed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests import references
from tests.base.test_references import WIDTH, array, compare, each_precision, inputs, randomized, weights_of
from tests.catalog import decoder_block, decoder_only
from tests.enhancements.feed_forward.test_activations import ENHANCEMENTS, call, logistic, numpy_silu
from tests.references import Array, Backward, linear, linear_gradients
from transformer.base.feed_forward import ReluFeedForwardConfig
from transformer.base.sockets import Config, Enhancement, OutputProjection
from transformer.base.transformer import XavierConfig, transformer
from transformer.base.wiring import Dropout
from transformer.enhancements import (
    apply_switches,
    bilinear,
    enhance,
    geglu,
    glu,
    llama_width,
    reglu,
    swiglu,
)
from transformer.enhancements.feed_forward.glu import (
    ACTIVATIONS,
    GatedFeedForward,
    GatedFeedForwardConfig,
    matched_width,
)
from transformer.models import GPT, KINDS, build, gpt
from transformer.utils.codec import ConfigError, decode, encode

GATES: dict[str, tuple[str, Callable[..., Enhancement]]] = {
    "use_glu": ("sigmoid", glu),
    "use_bilinear": ("identity", bilinear),
    "use_reglu": ("relu", reglu),
    "use_geglu": ("gelu", geglu),
    "use_swiglu": ("silu", swiglu),
}
each_gate = pytest.mark.parametrize("flag", GATES)


def numpy_sigmoid(z: Array) -> tuple[Array, Array]:
    s = logistic(z)
    return s, s * (1 - s)


NUMPY: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "sigmoid": numpy_sigmoid,
    "identity": lambda z: (z, np.ones_like(z)),
    "relu": references.relu,
    "gelu": references.gelu_erf,
    "gelu_tanh": references.gelu_tanh,
    "silu": numpy_silu,
}


def gated_feed_forward(x: Array, weights: dict[str, Array], name: str) -> tuple[Array, Backward]:
    """(φ(x W + b) ⊙ (x V + c)) W₂ + b₂; the biases where there are any."""
    names = ("gate_proj", "up_proj", "down_proj")
    w = {n: weights[f"{n}.weight"] for n in names}
    b = {n: weights.get(f"{n}.bias") for n in names}
    z, u = linear(x, w["gate_proj"], b["gate_proj"]), linear(x, w["up_proj"], b["up_proj"])
    phi, slope = NUMPY[name](z)

    def backward(dy: Array) -> dict[str, Array]:
        d_inner, dw2, db2 = linear_gradients(phi * u, w["down_proj"], dy)
        dx1, dw, db = linear_gradients(x, w["gate_proj"], d_inner * u * slope)
        dx2, dv, dc = linear_gradients(x, w["up_proj"], d_inner * phi)
        found = {"gate_proj": (dw, db), "up_proj": (dv, dc), "down_proj": (dw2, db2)}
        gradients = {"x": dx1 + dx2}
        for n, (matrix, shift) in found.items():
            gradients[f"{n}.weight"] = matrix
            if b[n] is not None:
                gradients[f"{n}.bias"] = shift
        return gradients

    return linear(phi * u, w["down_proj"], b["down_proj"]), backward


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@each_precision
def test_value_and_gradient(name: Any, bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    module = randomized(GatedFeedForwardConfig(80, bias=bias, activation=name).build(WIDTH), dtype)
    x = inputs(64, dtype)
    expected = gated_feed_forward(array(x), weights_of(module), name)
    compare(module(x, call()), {"x": x}, module, expected, tolerance)


def test_glu_is_torch_glu() -> None:
    """`torch.nn.GLU` is a ⊙ σ(b): the half that is not gated comes first."""
    module = randomized(GatedFeedForwardConfig(80, activation="sigmoid").build(WIDTH), torch.float64)
    x = inputs(64, torch.float64)
    halves = torch.cat([module.up_proj(x), module.gate_proj(x)], dim=-1)
    torch.testing.assert_close(module(x, call()), module.down_proj(nn.GLU()(halves)), rtol=0, atol=1e-13)


def test_gates_are_those_of_transformers() -> None:
    """LLaMA's SwiGLU and the GEGLU of T5 v1.1 and Gemma, with the same random weights."""
    pytest.importorskip("transformers")
    from transformers import GemmaConfig, LlamaConfig, T5Config
    from transformers.models.gemma.modeling_gemma import GemmaMLP
    from transformers.models.llama.modeling_llama import LlamaMLP
    from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

    llama = LlamaMLP(
        LlamaConfig(hidden_size=WIDTH, intermediate_size=80, num_attention_heads=12, mlp_bias=True)
    )
    gemma = GemmaMLP(GemmaConfig(hidden_size=WIDTH, intermediate_size=80, num_attention_heads=12))
    t5 = T5DenseGatedActDense(T5Config(d_model=WIDTH, d_ff=80, feed_forward_proj="gated-gelu")).eval()
    old = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}
    for theirs, name, bias in ((llama, "silu", True), (gemma, "gelu_tanh", False), (t5, "gelu_tanh", False)):
        randomized(theirs, torch.float64)
        ours = GatedFeedForwardConfig(80, bias=bias, activation=name).build(WIDTH).double()
        weights = theirs.state_dict().items()
        ours.load_state_dict(
            {old.get(n.split(".")[0], n.split(".")[0]) + "." + n.split(".")[1]: w for n, w in weights}
        )
        x = inputs(64, torch.float64)
        torch.testing.assert_close(ours(x, call()), theirs(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_on_the_gate(name: Any) -> None:
    """Doubling `up_proj` doubles the output of every variant; doubling `gate_proj` does so where φ is linear upward."""
    module = randomized(GatedFeedForwardConfig(80, activation=name).build(WIDTH), torch.float64)
    x = inputs(64, torch.float64)
    once = module(x, call())
    with torch.no_grad():
        module.up_proj.weight.mul_(2)
    torch.testing.assert_close(module(x, call()), 2 * once)
    with torch.no_grad():
        module.up_proj.weight.div_(2)
        module.gate_proj.weight.mul_(2)
    assert torch.allclose(module(x, call()), 2 * once) is (name in ("identity", "relu"))


def test_no_bias_unless_asked_for() -> None:
    assert not [name for name, _ in GatedFeedForwardConfig(8).build(4).named_parameters() if "bias" in name]
    names = [name for name, _ in GatedFeedForwardConfig(8, bias=True).build(4).named_parameters()]
    assert names == [f"{n}_proj.{part}" for n in ("gate", "up", "down") for part in ("weight", "bias")]


def test_dropout_falls_on_the_product() -> None:
    module = GatedFeedForwardConfig(80, dropout=0.25, activation="sigmoid").build(WIDTH).train()
    seen: list[Tensor] = []
    module.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert isinstance(module.dropout, Dropout)
    module(torch.randn(3, 64, WIDTH), call())
    share = (seen[0] == 0).double().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / seen[0].numel()) ** 0.5


# ---------------------------------------------------------------- width


def parameters(part: Config, d_model: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in part.build(d_model).parameters())


@pytest.mark.parametrize("biases", list(itertools.product([False, True], repeat=2)), ids=str)
def test_matched_width_is_within_half_a_unit(biases: tuple[bool, bool]) -> None:
    """The gated network has the plain one's number of parameters, to half of what one unit of width has."""
    for d_model, ratio in itertools.product((8, 17, 48, 64, 100, 192, 513, 768), (1, 2, 2.5, 3, 4, 5.3)):
        plain = ReluFeedForwardConfig(int(ratio * d_model), bias=biases[0])
        total = parameters(plain, d_model)
        for multiple_of in (1, 2, 8):
            width = matched_width(plain, d_model, biases[1], multiple_of)
            gated = GatedFeedForwardConfig(width, bias=biases[1])
            unit = 3 * d_model + 2 * biases[1]
            assert width % multiple_of == 0
            assert abs(parameters(gated, d_model) - total) <= unit * multiple_of / 2, (d_model, ratio)
            if not any(biases) and multiple_of == 1:
                assert width == round(plain.d_ff * 2 / 3)


@each_gate
def test_models_have_the_same_size_gated(flag: str) -> None:
    """Whole models, of both kinds: their sizes differ by less than half a unit of width in each layer."""
    for config in (gpt(50, 48, 4, 3), transformer(50, 48, 4, 3)):
        gated = apply_switches(config, {flag: True})[0]
        sizes = [sum(p.numel() for p in build(made).parameters()) for made in (config, gated)]
        layers = 3 if config.kind == "decoder_only" else 6
        assert sizes[0] != sizes[1] and abs(sizes[0] - sizes[1]) <= layers * 3 * 48 / 2


def test_llama_widths() -> None:
    """The widths of the released models (arXiv 2302.13971, 2307.09288, 2407.21783)."""
    assert llama_width(4096) == 11008  # 7B
    assert llama_width(5120) == 13824  # 13B
    assert llama_width(6656) == 17920  # 33B
    assert llama_width(8192) == 22016  # 65B
    assert llama_width(8192, 4096, 1.3) == 28672  # Llama 2 70B
    assert llama_width(4096, 1024, 1.3) == 14336  # Llama 3 8B
    assert llama_width(16384, 4096, 1.2) == 53248  # Llama 3 405B
    for d_model in range(16, 9000, 16):
        assert llama_width(d_model) == 256 * math.ceil(8 * d_model / 3 / 256)


@pytest.mark.parametrize("multiple_of", [0, -8])
def test_a_width_is_a_multiple_of_something(multiple_of: int) -> None:
    message = rf"^a width cannot be a multiple of {multiple_of}; multiple_of is 1 \(any width\) or more$"
    with pytest.raises(ValueError, match=message):
        llama_width(64, multiple_of)
    with pytest.raises(ValueError, match=message):
        enhance(gpt(50, 48, 4, 1), swiglu(multiple_of=multiple_of))


def test_a_part_with_biases_does_not_know_the_width_that_matches() -> None:
    message = (
        r"^the gated width that matches d_ff 20 with biases depends on d_model, which BlockConfig does not know; "
        r"apply the enhancement to the whole model, or give d_ff$"
    )
    with pytest.raises(ValueError, match=message):
        enhance(decoder_block(), swiglu())
    assert enhance(decoder_block(), swiglu(12)).feed_forward == GatedFeedForwardConfig(12, 0.2)
    plain = decoder_block(feed_forward=ReluFeedForwardConfig(30, bias=False))
    assert enhance(plain, swiglu()).feed_forward == GatedFeedForwardConfig(20)
    with pytest.raises(ValueError, match=message.replace("20", "30")):
        enhance(plain, swiglu(bias=True))


# ---------------------------------------------------------------- enhancements


@each_gate
@pytest.mark.parametrize("before", [None, *ENHANCEMENTS])
def test_a_gate_replaces_every_plain_network(before: str | None, flag: str) -> None:
    activation, gate = GATES[flag]
    config = transformer(100, 16, 2, 2)
    if before is not None:
        config = enhance(config, ENHANCEMENTS[before][0])
    for gated in (enhance(config, gate()), apply_switches(config, {flag: True})[0]):
        width = matched_width(ReluFeedForwardConfig(64), 16, False)
        for stack in (gated.encoder, gated.decoder):
            parts = [block.feed_forward for block in stack.blocks]
            assert parts == [GatedFeedForwardConfig(width, activation=activation)] * 2


@each_gate
@pytest.mark.parametrize("other", GATES)
def test_a_gate_can_be_changed_and_keeps_its_width(other: str, flag: str) -> None:
    config = enhance(gpt(100, 16, 2, 2), GATES[other][1](bias=True))
    changed = enhance(config, GATES[flag][1]())
    assert changed == enhance(gpt(100, 16, 2, 2), GATES[flag][1](bias=True))
    assert enhance(changed, GATES[flag][1](40)).stack.blocks[0].feed_forward.d_ff == 40
    for plain, _ in ENHANCEMENTS.values():
        assert enhance(changed, plain) == changed  # an activation is for plain networks; a gate has its own


def test_width_and_multiple_can_be_said() -> None:
    for options, width in (({}, 44), ({"multiple_of": 16}, 48), ({"d_ff": 50}, 50)):
        config = enhance(gpt(100, 16, 2, 1), swiglu(**options))
        assert config.stack.blocks[0].feed_forward.d_ff == width


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_gate_can_be_written_in_yaml(activation: Any) -> None:
    part = GatedFeedForwardConfig(20, 0.2, True, activation)
    config = decoder_only(decoder_block(feed_forward=part))
    assert decode(type(config), encode(config), kinds=KINDS) == config
    data = encode(config)
    data["stack"]["blocks"][0]["feed_forward"]["activation"] = "siluu"
    with pytest.raises(ConfigError, match=r"silu"):
        decode(type(config), data, kinds=KINDS)


# ---------------------------------------------------------------- first weights, speed


def test_first_weights_reach_the_gate() -> None:
    """GPT-2's rule scales `down_proj` and not `gate_proj` or `up_proj`; Xavier's reaches all three."""
    model = GPT(500, d_model=192, n_heads=4, n_layers=3, use_swiglu=True)
    for block in model.stack.blocks:
        part = block.feed_forward.branch
        assert isinstance(part, GatedFeedForward) and isinstance(part.down_proj, OutputProjection)
        for layer, std in ((part.gate_proj, 0.02), (part.up_proj, 0.02), (part.down_proj, 0.02 / 6**0.5)):
            assert abs(layer.weight.std().item() / std - 1) < 0.02
    part = GatedFeedForwardConfig(500, bias=True).build(192)
    XavierConfig().initialize(part)
    for layer in (part.gate_proj, part.up_proj, part.down_proj):
        bound = (6 / (500 + 192)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()


class Obvious(nn.Module):
    """SwiGLU as one would write it first."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(d_model, d_ff, bias=False) for _ in range(2))
        self.w2 = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Calls(TorchDispatchMode):
    """The names of all operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_swiglu_calls_what_three_linear_maps_call() -> None:
    """Operation by operation, in whatever order, which no noise hides: nothing is copied or computed besides."""
    names = []
    for module in (GatedFeedForwardConfig(48).build(32).eval(), Obvious(32, 48)):
        with Calls() as calls:
            module(torch.randn(1, 7, 32), call())
        names.append(sorted(calls.names))
    assert names[0] == names[1] and sum("mm" in name for name in names[0]) == 3


@torch.no_grad()
def test_swiglu_is_not_slower_than_three_linear_maps() -> None:
    """Processor time, the best of runs that take turns. A fourth map would take a third more; noise is below that."""
    ours, theirs = GatedFeedForwardConfig(1376).build(512).eval(), Obvious(512, 1376)
    x, context = torch.randn(1, 256, 512), call()

    def seconds(module: nn.Module) -> float:
        begin = time.process_time()
        for _ in range(3):
            module(x, context)
        return time.process_time() - begin

    best = {ours: math.inf, theirs: math.inf}
    for attempt in range(60):
        for module in best:
            best[module] = min(best[module], seconds(module))
        if attempt >= 10 and best[ours] <= 1.2 * best[theirs]:
            return
    raise AssertionError(f"{best[ours]:.6f} s, and the obvious version {best[theirs]:.6f} s")
