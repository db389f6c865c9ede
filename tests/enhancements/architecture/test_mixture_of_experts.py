"""Mixtures of experts: values and gradients by hand, two ways of dispatch, what is counted, dropped and balanced."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.base.test_references import array, randomized, weights_of
from tests.enhancements.architecture import moe_definitions as numpy_moe
from transformer.analysis import trace
from transformer.analysis.cost import Shape, count_active_parameters, count_flops, count_parameters
from transformer.base.feed_forward import ReluFeedForwardConfig
from transformer.base.sockets import AuxiliaryLosses, Context, Execution, Layout, Mask
from transformer.base.transformer import XavierConfig
from transformer.enhancements import (
    DISPATCHES,
    enhance,
    grouped_dispatch,
    loop_dispatch,
    mixture_of_experts,
    naive_attention,
    swiglu,
)
from transformer.enhancements.architecture.moe.capacity import within_capacity
from transformer.enhancements.architecture.moe.dispatch import Slots
from transformer.enhancements.architecture.moe.expert_choice import ExpertChoiceConfig
from transformer.enhancements.architecture.moe.grouped_product import grouped_product
from transformer.enhancements.architecture.moe.losses import (
    BalanceLossConfig,
    RouterZLossConfig,
    SequenceBalanceLossConfig,
)
from transformer.enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from transformer.enhancements.architecture.moe.routing import RouterConfig, Routing, best
from transformer.enhancements.architecture.moe.sigmoid import SigmoidTopKConfig
from transformer.enhancements.architecture.moe.soft import SoftMixtureOfExpertsConfig
from transformer.enhancements.architecture.moe.softmax import SoftmaxAfterTopKConfig, SoftmaxBeforeTopKConfig
from transformer.enhancements.feed_forward.clamped_glu import ClampedGatedFeedForwardConfig
from transformer.enhancements.feed_forward.gelu import GELUFeedForwardConfig
from transformer.enhancements.feed_forward.glu import GatedFeedForwardConfig
from transformer.enhancements.feed_forward.token_gated import TokenGatedFeedForwardConfig
from transformer.models import build as build_model
from transformer.models import gpt

WIDTH, LENGTH, N = 12, 64, 6
LENGTHS = (64, 33, 1)
each_dispatch = pytest.mark.parametrize("dispatch", DISPATCHES.values(), ids=list(DISPATCHES))
GATED, PLAIN = GatedFeedForwardConfig(9), GELUFeedForwardConfig(9)
GROUPS = {"n_groups": 3, "top_groups": 2}
ROUTERS: dict[str, tuple[RouterConfig, Any]] = {
    "switch": (SoftmaxBeforeTopKConfig(1), partial(numpy_moe.before, k=1, scale=1, groups=(1, 1), renormalize=False)),
    "before": (
        SoftmaxBeforeTopKConfig(3, scale=1.7, **GROUPS),
        partial(numpy_moe.before, k=3, scale=1.7, groups=(3, 2), renormalize=False),
    ),
    "gshard": (
        SoftmaxBeforeTopKConfig(2, renormalize=True),
        partial(numpy_moe.before, k=2, scale=1, groups=(1, 1), renormalize=True),
    ),
    "mixtral": (SoftmaxAfterTopKConfig(2, bias=True), partial(numpy_moe.after, k=2, scale=1, groups=(1, 1))),
    "sigmoid": (
        SigmoidTopKConfig(2, renormalize=False),
        partial(numpy_moe.sigmoid, k=2, scale=1, groups=(1, 1), renormalize=False),
    ),
    "deepseek_v3": (
        SigmoidTopKConfig(3, scale=2.5, **GROUPS),
        partial(numpy_moe.sigmoid, k=3, scale=2.5, groups=(3, 2), renormalize=True),
    ),
}  # fmt: skip
ALPHAS = (0.7, 0.9, 0.3)
LOSSES = (BalanceLossConfig(0.7), SequenceBalanceLossConfig(0.9), RouterZLossConfig(0.3))


def lengths_to_real(lengths: tuple[int, ...] = LENGTHS, width: int = LENGTH) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def call(real: Tensor, dispatch: Any = None, causal: bool = True) -> Context:
    layout = Layout.of(real.long(), None if real.all() else real)
    return Context(layout, Mask(causal=causal), Execution(naive_attention, dispatch=dispatch))


def tokens(rows: int = 3, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, length, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()


def build(config: Any, dtype: torch.dtype = torch.float64) -> Any:
    module = randomized(config.build(WIDTH), dtype)
    if hasattr(module.router, "selection"):
        with torch.no_grad():
            module.router.selection.bias.copy_(torch.linspace(0.3, -0.3, N))
    return module


def route_of(name: str, module: Any) -> Any:
    route = ROUTERS[name][1]
    return partial(route, bias=array(module.router.selection.bias)) if "sigmoid" in str(route.func) else route


@pytest.mark.parametrize("name", ROUTERS)
@each_dispatch
def test_value_loss_and_gradient_by_hand(name: str, dispatch: Any) -> None:
    config = MixtureOfExpertsConfig(N, GATED if name != "mixtral" else PLAIN, ROUTERS[name][0], losses=LOSSES)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        torch.manual_seed(11)
        module, x, real = build(config, dtype).eval(), tokens(dtype=dtype), lengths_to_real()
        gated = None if name == "mixtral" else "silu"
        expected = numpy_moe.Mixture(
            array(x), real.numpy(), weights_of(module), N, route_of(name, module), gated, ALPHAS
        )
        context = call(real, dispatch)
        y = module(x, context)
        assert np.abs(array(y) - expected.value).max() <= tolerance * max(1, np.abs(expected.value).max())
        assert context.auxiliary.total().item() == pytest.approx(expected.loss, abs=tolerance * 10)
        slope = torch.randn(y.shape, dtype=torch.float64).to(dtype) / LENGTH * real[..., None]
        ((y * slope).sum() + context.auxiliary.total()).backward()
        hand = expected.backward(array(slope))
        ours = {"x": x.grad} | {n: p.grad for n, p in module.named_parameters()}
        assert ours.keys() == hand.keys()
        for path, gradient in ours.items():
            assert np.abs(hand[path]).max() > 1e-3, path
            error = np.abs(array(gradient) - hand[path]).max()
            assert error <= tolerance * max(1.0, np.abs(hand[path]).max()), f"{path}: {error}"
        loads = array(module.router(x, context).chosen().sum((0, 1)))
        assert (loads == expected.loads).all() and loads.sum() == sum(LENGTHS) * config.router.top_k


@each_dispatch
def test_what_is_over_capacity_is_dropped_and_contributes_nothing(dispatch: Any) -> None:
    config = MixtureOfExpertsConfig(N, GATED, ROUTERS["gshard"][0], capacity_factor=0.6, losses=LOSSES)
    torch.manual_seed(3)
    module, x, real = build(config).train(), tokens(), lengths_to_real()
    real[1] = real[1].flip(0)  # padding on the left takes no place
    expected = numpy_moe.Mixture(
        array(x), real.numpy(), weights_of(module), N, route_of("gshard", module), "silu", ALPHAS, 0.6
    )
    context = call(real, dispatch)
    y = module(x, context)
    assert np.abs(array(y) - expected.value).max() <= 1e-12
    slope = torch.randn_like(y) * real[..., None]
    ((y * slope).sum() + context.auxiliary.total()).backward()
    hand = expected.backward(array(slope))
    for path, parameter in (("x", x), *module.named_parameters()):
        assert np.abs(array(parameter.grad) - hand[path]).max() <= 1e-10, path
    routing = module.capacity(module.router(x, context))
    kept, chosen = int(routing.kept.sum()), 2 * sum(LENGTHS)
    assert expected.dropped == chosen - kept > 20
    places = torch.zeros(3, N, dtype=torch.long)
    for b in range(3):
        places[b] = torch.bincount(routing.experts[b][routing.kept[b]], minlength=N)
    room = torch.tensor([math.ceil(2 * n * 0.6 / N) for n in LENGTHS])
    assert (places <= room[:, None]).all() and (places == room[:, None]).any()
    lost = ~routing.kept.any(-1) & real
    assert lost.any() and not y[lost].any()  # nothing at all, so the residual passes by
    everything = module.eval().capacity(module.router(x, context))
    assert int(everything.kept.sum()) == chosen  # in evaluation nothing is dropped


def test_capacity_is_a_whole_number_rounded_up_once() -> None:
    """⌈k·T·factor/x⌉, and no more where the product is whole and its rounding is not."""
    for length, factor, n, k in (
        (10, 1.1, 1, 1),
        (64, 1.25, 8, 1),
        (63, 1.25, 8, 1),
        (7, 3.3, 7, 2),
        (1, 0.1, 4, 1),
    ):
        experts = torch.zeros(1, length, k, dtype=torch.long)
        experts[..., 1:] = 1
        logits = torch.zeros(1, length, max(n, 2))
        kept = torch.ones(1, length, k, dtype=torch.bool)
        routing = Routing(experts, torch.ones(1, length, k), kept, kept[..., 0], logits, logits)
        room = math.ceil(round(k * length * factor / max(n, 2), 9))
        after = within_capacity(routing, factor).kept[0, :, 0]
        assert after.tolist() == [True] * min(room, length) + [False] * max(0, length - room)


def test_first_come_first_served_whoever_comes_later() -> None:
    """A token is kept or dropped by those before it in its row, and by no other row."""
    config = MixtureOfExpertsConfig(N, GATED, SoftmaxBeforeTopKConfig(2), capacity_factor=0.5)
    module, context = build(config).train(), call(lengths_to_real((64,) * 3))
    x = tokens().detach()
    kept = module.capacity(module.router(x, context)).kept
    for cut in (1, 17, 40):
        other = x.clone()
        other[:, cut:], other[1] = torch.randn_like(x[:, cut:]), torch.randn_like(x[1])
        again = module.capacity(module.router(other, context)).kept
        assert torch.equal(again[[0, 2], :cut], kept[[0, 2], :cut])


def test_equal_scores_go_to_the_lower_number() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0] * 5, [-torch.inf, 1.0, -torch.inf, 1.0, 0.0]])
    assert best(scores, 4).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [1, 3, 4, 0]]
    large = torch.zeros(5, 300)
    assert torch.equal(best(large, 7), torch.arange(7).expand(5, 7))
    for name, (config, _) in ROUTERS.items():
        router = config.build(WIDTH, N)
        for parameter in router.parameters():
            torch.nn.init.zeros_(parameter)
        routing = router(tokens(dtype=torch.float32), call(lengths_to_real()))
        assert (routing.experts == torch.arange(config.top_k)).all(), name


@pytest.mark.parametrize("name", ROUTERS)
def test_loads_and_gates_add_up(name: str) -> None:
    config, _ = ROUTERS[name]
    module = build(MixtureOfExpertsConfig(N, GATED, config))
    real = lengths_to_real()
    routing = module.router(tokens(), call(real))
    assert int(routing.chosen().sum()) == sum(LENGTHS) * config.top_k == int(routing.kept.sum())
    assert torch.allclose(routing.scores.sum(-1), torch.ones(3, LENGTH, dtype=torch.float64))
    adds_up = isinstance(config, SoftmaxAfterTopKConfig) or getattr(config, "renormalize", False)
    total = routing.gates.sum(-1) / config.scale
    assert (
        torch.allclose(total, torch.ones_like(total))
        if adds_up
        else not torch.allclose(total, torch.ones_like(total))
    )
    assert (routing.experts.sort(-1).values.diff(dim=-1) > 0).all()  # k different ones
    by_gate = routing.gates if not hasattr(module.router, "selection") else (routing.gates * 0)
    assert (by_gate.diff(dim=-1) <= 0).all()  # the best first


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_losses_at_balance_are_known(top_k: int) -> None:
    """α, for any number of experts and choices; α·x where one expert has everything, and (log x)² for equal logits."""
    n, length = 8, 16
    experts = (torch.arange(length)[:, None] * top_k + torch.arange(top_k)) % n
    logits, real = torch.zeros(2, length, n, dtype=torch.float64), torch.ones(2, length, dtype=torch.bool)
    kept = real[..., None].expand(-1, -1, top_k)
    routing = Routing(experts.expand(2, -1, -1), kept.double(), kept, real, logits, logits.softmax(-1))
    assert BalanceLossConfig(0.01).build()(routing).item() == pytest.approx(0.01, rel=1e-12)
    assert SequenceBalanceLossConfig(0.03).build()(routing).item() == pytest.approx(0.03, rel=1e-12)
    assert RouterZLossConfig(0.001).build()(routing).item() == pytest.approx(
        0.001 * math.log(n) ** 2, rel=1e-12
    )
    scores = torch.nn.functional.one_hot(torch.zeros(2, length, dtype=torch.long), n).double()
    collapsed = replace(routing, experts=torch.zeros(2, length, 1, dtype=torch.long), scores=scores)
    assert BalanceLossConfig(0.01).build()(collapsed).item() == pytest.approx(0.01 * n, rel=1e-12)
    by_row = replace(routing, experts=torch.tensor([0, 1]).view(2, 1, 1).expand(2, length, 1))
    by_row = replace(by_row, scores=torch.nn.functional.one_hot(by_row.experts[..., 0], n).double())
    whole, each = (
        loss(1.0).build()(by_row).item() for loss in (BalanceLossConfig, SequenceBalanceLossConfig)
    )
    assert whole == pytest.approx(n / 2) and each == pytest.approx(
        n
    )  # every sequence has an expert of its own


def test_padding_and_nothing_at_all_cost_nothing() -> None:
    module = build(MixtureOfExpertsConfig(N, GATED, losses=LOSSES))
    x = tokens()
    totals = []
    for filler in (0.0, 5.0):
        filled = torch.where(lengths_to_real()[..., None], x, filler)
        context = call(lengths_to_real())
        assert not module(filled, context)[~lengths_to_real()].any()
        totals.append(context.auxiliary.total())
    torch.testing.assert_close(*totals, rtol=1e-14, atol=0)
    context = call(lengths_to_real((0, 0, 0)))
    (module(x, context).sum() + context.auxiliary.total()).backward()
    assert context.auxiliary.total() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


EXPERTS = {
    "relu": ReluFeedForwardConfig(9),
    "gelu, no bias": GELUFeedForwardConfig(9, bias=False, form="tanh"),
    "geglu, bias": GatedFeedForwardConfig(9, bias=True, activation="gelu"),
    "clamped": ClampedGatedFeedForwardConfig(9, limit=0.5),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_the_two_ways_agree_and_each_expert_is_the_network(name: str) -> None:
    """Value and gradients; and with one expert chosen by all, the mixture is that network."""
    for capacity in (None, 0.7):
        module = build(MixtureOfExpertsConfig(N, EXPERTS[name], capacity_factor=capacity)).train()
        x, real = tokens(), lengths_to_real()
        results = []
        for dispatch in (loop_dispatch, grouped_dispatch):
            y = module(x, call(real, dispatch))
            results.append((y, *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    single = EXPERTS[name].build(WIDTH).double()
    config = MixtureOfExpertsConfig(3, EXPERTS[name], SoftmaxAfterTopKConfig(1))
    module = config.build(WIDTH).double()
    number = module.router(x, call(real)).experts[0, 0, 0].item()
    with torch.no_grad():
        for path, parameter in single.named_parameters():
            parameter.copy_(module.experts.get_parameter(path).unflatten(0, (3, -1))[number])
    torch.testing.assert_close(module(x, call(real))[0, 0], single(x, call(real))[0, 0], rtol=0, atol=1e-13)


def test_the_grouped_product_is_the_products_of_its_groups() -> None:
    """Value, first and second derivatives; groups may be empty, and rows may belong to none."""
    counts = torch.tensor([3, 0, 4, 1])
    x, w = torch.randn(10, 5).double().requires_grad_(), torch.randn(4, 6, 5).double().requires_grad_()
    y = grouped_product(x, w, counts)
    rows = x.split([*counts.tolist(), 2])
    expected = torch.cat(
        [*(part @ one.T for part, one in zip(rows, w, strict=False)), torch.zeros(2, 6).double()]
    )
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x, w: grouped_product(x, w, counts), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: grouped_product(x, w, counts), (x, w))


def test_an_expert_that_nobody_chose_has_no_gradient() -> None:
    module = build(MixtureOfExpertsConfig(N, GATED, SoftmaxBeforeTopKConfig(1), losses=()))
    with torch.no_grad():
        module.router.proj.weight[3] = module.router.proj.weight[2]  # ties go to the lower
    for dispatch in DISPATCHES.values():
        module.zero_grad()
        module(tokens(), call(lengths_to_real(), dispatch)).sum().backward()
        gradients = module.experts.up_proj.weight.grad.unflatten(0, (N, -1))
        assert not gradients[3].any() and gradients[2].any()


@torch.no_grad()
def test_no_token_depends_on_those_beside_it() -> None:
    """Dropless experts: a row alone is the row in any batch, in any order, to rounding."""
    module = build(
        MixtureOfExpertsConfig(N, GATED, ROUTERS["deepseek_v3"][0], TokenGatedFeedForwardConfig(GATED))
    )
    x = tokens(8).detach()
    whole = module(x, call(lengths_to_real((64,) * 8)))
    for rows in ([2], [5, 1, 2], [7, 6, 5, 4, 3, 2, 1, 0]):
        some = module(x[rows], call(lengths_to_real((64,) * len(rows))))
        torch.testing.assert_close(some, whole[rows], rtol=0, atol=1e-13)
    single = torch.cat(
        [module(x[:, t : t + 1], call(lengths_to_real((1,) * 8, 1))) for t in range(0, 64, 9)], 1
    )
    torch.testing.assert_close(single, whole[:, ::9], rtol=0, atol=1e-13)


@torch.no_grad()
def test_experts_may_stand_in_any_order() -> None:
    module = build(MixtureOfExpertsConfig(N, GATED, ROUTERS["mixtral"][0]))
    x, context = tokens(), call(lengths_to_real())
    y, order = module(x, context), torch.tensor([3, 0, 5, 1, 4, 2])
    for parameter in module.parameters():
        parameter.copy_(parameter.unflatten(0, (N, -1))[order].flatten(0, 1))
    torch.testing.assert_close(module(x, context), y, rtol=0, atol=1e-13)


def test_routers_decide_in_full_precision() -> None:
    """Under autocast to bfloat16 the decisions are those of float32, and the experts multiply in bfloat16."""
    module = build(MixtureOfExpertsConfig(N, GATED), torch.float32)
    x, real = tokens(dtype=torch.float32), lengths_to_real()
    plain = module.router(x, call(real))
    seen: list[torch.dtype] = []
    module.experts.up_proj.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    for dispatch in DISPATCHES.values():
        with torch.autocast("cpu", torch.bfloat16):
            again = module.router(x, call(real))
            y = module(x, call(real, dispatch))
        y.sum().backward()
        assert torch.equal(again.experts, plain.experts) and torch.equal(again.gates, plain.gates)
        assert (y - module(x, call(real, dispatch))).abs().max() < 0.05
    assert seen[0] == torch.bfloat16 and y.dtype == torch.float32


def test_jitter_shakes_the_router_and_only_in_training() -> None:
    module = build(MixtureOfExpertsConfig(N, GATED, SoftmaxBeforeTopKConfig(2, jitter=0.2)))
    x, context = tokens(), call(lengths_to_real())
    assert torch.equal(module.eval()(x, context), module(x, context))
    module.train()
    ratio = module.router.jitter(x.detach()) / x.detach()
    assert 0.8 <= ratio.min() < 0.81 and 1.19 < ratio.max() <= 1.2 and abs(ratio.mean().item() - 1) < 0.01
    assert not torch.equal(module.router(x, context).logits, module.router(x, context).logits)


# ---------------------------------------------------------------- experts that choose


def test_expert_choice_is_the_definition() -> None:
    """Each expert takes its best ⌈T·factor/x⌉ real tokens; the value is summed token by token."""
    module, x, real = build(ExpertChoiceConfig(4, GATED, 1.5)), tokens(), lengths_to_real()
    weights, z = weights_of(module), array(x) @ array(module.router.proj.weight).T
    expected = np.zeros((3, LENGTH, WIDTH))
    for b, length in enumerate(LENGTHS):
        scores = np.array([numpy_moe.softmax(z[b, t]) for t in range(length)])
        for i in range(4):
            for t in numpy_moe.choose(scores[:, i], math.ceil(length * 1.5 / 4)):
                one = numpy_moe.expert(weights, i, 4)
                expected[b, t] += scores[t, i] * numpy_moe.gated_feed_forward(array(x)[b, t], one, "silu")[0]
    for dispatch in DISPATCHES.values():
        y = module(x, call(real, dispatch, causal=False))
        assert np.abs(array(y) - expected).max() <= 1e-12
    picks = module.router(x, call(real, causal=False))
    assert [int(row.sum()) for row in picks.kept] == [4 * math.ceil(n * 1.5 / 4) for n in LENGTHS]
    torch.nn.init.zeros_(module.router.proj.weight)
    picks = module.router(x, call(real, causal=False))  # equal scores go to the earlier token
    assert torch.equal(picks.tokens[0], torch.arange(24)[:, None].expand(24, 4))


def test_soft_mixture_is_the_definition() -> None:
    module, x, real = build(SoftMixtureOfExpertsConfig(3, PLAIN, 2)), tokens(), lengths_to_real()
    weights, z = weights_of(module), array(x) @ array(module.router.proj.weight).T
    y = module(x, call(real, causal=False))
    for b, length in enumerate(LENGTHS):
        into = np.exp(z[b, :length])
        slots = (into / into.sum(0)).T @ array(x)[b, :length]
        made = []
        for s, slot in enumerate(slots):
            one = numpy_moe.expert(weights, s // 2, 3)
            made.append(numpy_moe.feed_forward(slot, one, numpy_moe.gelu_erf)[0])
        out = into / into.sum(1, keepdims=True) @ np.array(made)
        assert np.abs(array(y)[b, :length] - out).max() <= 1e-12
    empty = module(x, call(lengths_to_real((64, 0, 0)), causal=False))
    assert empty.isfinite().all()


@pytest.mark.parametrize(
    "config", [ExpertChoiceConfig(4, GATED), SoftMixtureOfExpertsConfig(3, GATED)], ids=lambda c: c.kind
)
def test_who_sees_later_tokens_is_refused_in_a_causal_model(config: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^{config.kind} cannot stand in a causal model: .* on later tokens; use mixture"
    ):
        config.build(WIDTH).double()(tokens(), call(lengths_to_real()))


# ---------------------------------------------------------------- configs


def mixing(n: int, router: RouterConfig) -> Any:
    return lambda: MixtureOfExpertsConfig(n, GATED, router).build(8)


REFUSED: dict[str, tuple[Any, str]] = {
    "too many choices": (mixing(2, SoftmaxAfterTopKConfig(3)), "top_k 3 is more than the 2"),
    "uneven groups": (mixing(5, SigmoidTopKConfig(1, n_groups=2)), "n_experts 5 cannot stand in n_groups 2"),
    "closed groups": (mixing(6, SigmoidTopKConfig(3, n_groups=3)), "top_k 3 is more than the 2 experts"),
    "more than all": (lambda: SigmoidTopKConfig(n_groups=2, top_groups=3), "top_groups 3 is more than n_groups 2"),
    "mixtures of mixtures": (
        lambda: MixtureOfExpertsConfig(2, MixtureOfExpertsConfig()).build(8), "an expert is a plain or a gated",
    ),
    "every zero": (lambda: mixture_of_experts(every=0), "every is 1 or more and first 0 or more, got 0 and 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_the_enhancement_makes_experts_of_what_is_there() -> None:
    plain = gpt(50, 24, 2, 4)
    mixed = enhance(plain, swiglu(), mixture_of_experts(4, every=2, first=1))
    kinds = [block.feed_forward.kind for block in mixed.stack.blocks]
    assert kinds == ["gated_feed_forward", "gated_feed_forward", "mixture_of_experts", "gated_feed_forward"]
    assert mixed.stack.blocks[2].feed_forward.experts == mixed.stack.blocks[0].feed_forward
    assert (
        enhance(mixed, mixture_of_experts(4)).stack.blocks[2] == mixed.stack.blocks[2]
    )  # a mixture stays one
    fine = enhance(plain.stack.blocks[0], mixture_of_experts(16, d_ff=24)).feed_forward
    assert fine.experts.d_ff == 24 and fine.n_experts == 16


def test_first_weights_are_those_of_one_network() -> None:
    """Xavier's bound is that of one expert's matrix, not of all of them together."""
    module = MixtureOfExpertsConfig(8, GatedFeedForwardConfig(40)).build(24)
    XavierConfig().initialize(module)
    for layer in (module.experts.gate_proj, module.experts.up_proj, module.experts.down_proj):
        bound = math.sqrt(6 / (40 + 24))
        assert 0.99 * bound < layer.weight.abs().max() <= bound


def test_the_collector_tells_the_first_from_the_second_time() -> None:
    collector, module = AuxiliaryLosses(), torch.nn.Identity()
    assert [collector.first(module), collector.first(module), AuxiliaryLosses().first(module)] == [
        True,
        False,
        True,
    ]


def test_what_a_token_uses_is_counted_and_every_decision_can_be_tapped() -> None:
    """Active weights by hand; operations of k experts, not of all; taps of router, capacity and gates."""
    config = enhance(
        gpt(50, 24, 2, 2), mixture_of_experts(6, SoftmaxBeforeTopKConfig(2), d_ff=10, capacity_factor=0.5)
    )
    model = gpt_model(config)
    each = 2 * 24 * 10 + 10 + 24
    assert count_parameters(model) - count_active_parameters(model) == 2 * 4 * each
    flops = count_flops(config, Shape(3, 16)).by_module
    place = "stack.blocks.1.feed_forward.branch"
    assert flops[f"{place}.experts.up_proj"] == 2 * 3 * 16 * 2 * 24 * 10
    assert flops[f"{place}.router.proj"] == 2 * 3 * 16 * 24 * 6 and "" not in flops
    x = torch.randint(50, (3, 16))
    seen = trace(model, x, taps=f"{place}.*")
    assert seen[f"{place}.router.experts"].shape == (3, 16, 2) and seen[f"{place}.capacity.kept"].all()
    logits = seen[f"{place}.router.proj"]
    assert torch.equal(seen[f"{place}.router.experts"], best(logits, 2))
    assert torch.equal(
        seen[f"{place}.router.gates"], logits.softmax(-1).sort(-1, descending=True).values[..., :2]
    )


def gpt_model(config: Any) -> Any:
    torch.manual_seed(4)
    return build_model(config, Execution(naive_attention))


def test_slots_are_token_by_token() -> None:
    experts = torch.tensor([[[1, 0], [2, 1]]])
    kept = torch.tensor([[[True, False], [True, True]]])
    zeros = torch.zeros(1, 2, 3)
    slots = Slots.of(Routing(experts, experts.double(), kept, kept.any(-1), zeros, zeros))
    assert slots.tokens.tolist() == [0, 0, 1, 1] and slots.experts.tolist() == [1, 0, 2, 1]
