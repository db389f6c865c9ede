"""Mixture of depths: which tokens go through, what becomes of them, and that decoding is the whole sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import properties, references
from tests.base.test_references import array
from tests.catalog import decoder_block, encoder_decoder, make
from tests.properties import close, tokens
from transformer.analysis.cost import Shape, count_flops
from transformer.base import AuxiliaryLosses
from transformer.base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from transformer.base.feed_forward import ReluFeedForwardConfig
from transformer.base.position import NoPositionConfig
from transformer.base.sockets import Execution
from transformer.base.stack import BlockConfig, StackConfig
from transformer.base.wiring import PreNormConfig
from transformer.enhancements import enhance, mixture_of_depths, naive_attention, rms_norm, rope
from transformer.enhancements.architecture.mixture_of_depths import (
    AboveZero,
    GreatestWeights,
    MixtureOfDepths,
    MixtureOfDepthsConfig,
)
from transformer.enhancements.attention.linear import LinearAttentionConfig
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.generation import generate
from transformer.models import DecoderOnlyConfig, build, gpt

pytestmark = pytest.mark.shapes_unchecked

WIDTH, HEADS, LENGTH, CAPACITY = 24, 12, 64, 0.3
INNER = BlockConfig(
    MultiHeadAttentionConfig(HEADS, bias=True), ReluFeedForwardConfig(20), wiring=PreNormConfig(0.0)
)


def deep(block: Any = INNER, *, position: Any = None, **options: Any) -> DecoderOnlyConfig:
    options = {"capacity": CAPACITY, **options}
    blocks = (MixtureOfDepthsConfig(block, **options), block)
    return DecoderOnlyConfig(11, WIDTH, StackConfig(blocks, position or RotaryPositionConfig(), dropout=0.0))


def called(model: nn.Module, *inputs: Tensor, **options: Any) -> tuple[MixtureOfDepths, list[Any]]:
    """Run the model; return its first mixture, and what went in and came out."""
    layer = next(module for module in model.modules() if isinstance(module, MixtureOfDepths))
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda module, args, out: seen.append((args[0], args[1], out)))
    model(*inputs, **options)
    handle.remove()
    return layer, seen


# ---------------------------------------------------------------- the definition


def numpy_block(x: np.ndarray, p: dict[str, np.ndarray], positions: np.ndarray) -> tuple[np.ndarray, Any]:
    """A pre-norm block of attention with rotary positions and a ReLU network, of one row, with its gradient."""

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name[len(prefix) :]: value for name, value in p.items() if name.startswith(prefix)}

    causal = (positions[:, None] >= positions[None, :])[None]
    normed, norm_back = references.layer_norm(x, p["mixer.norm.weight"], p["mixer.norm.bias"], 1e-5)
    mixed, mixer_back = references.multi_head_attention(
        normed[None], normed[None], part("mixer.branch."), HEADS, causal, positions[None]
    )
    h = x + mixed[0]
    again, again_back = references.layer_norm(
        h, p["feed_forward.norm.weight"], p["feed_forward.norm.bias"], 1e-5
    )
    fed, fed_back = references.feed_forward(again, part("feed_forward.branch."), references.relu)

    def backward(dy: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        d_fed = fed_back(dy)
        d_again = again_back(d_fed.pop("x"))
        dh = dy + d_again.pop("x")
        d_mixed = mixer_back(dh[None])
        d_normed = norm_back((d_mixed.pop("x") + d_mixed.pop("memory"))[0])
        dx = dh + d_normed.pop("x")
        named = {
            "feed_forward.branch.": d_fed,
            "feed_forward.norm.": d_again,
            "mixer.branch.": d_mixed,
            "mixer.norm.": d_normed,
        }
        return dx, {prefix + name: g for prefix, group in named.items() for name, g in group.items()}

    return h + fed, backward


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(dtype: torch.dtype) -> None:
    """y = x + r·(Block(x̃) − x̃) on the ⌈C·t⌉ greatest weights, in NumPy, with the gradient worked by hand."""
    model = make(deep(), dtype=dtype).train()
    layer, seen = called(model, tokens(2, LENGTH))
    context = seen[0][1]
    x = torch.randn(
        2, LENGTH, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    layer.zero_grad()
    y = layer(x, context)
    dy = torch.randn(y.shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    y.backward(dy)
    p = {name: array(value).astype(np.float64) for name, value in layer.block.named_parameters()}
    router = array(layer.router.weight).astype(np.float64)[0]
    expected, d_x = array(x).astype(np.float64), array(dy).astype(np.float64)
    d_router, d_block = np.zeros(WIDTH), {name: np.zeros_like(value) for name, value in p.items()}
    for row in range(2):
        inputs, slope = array(x)[row].astype(np.float64), array(dy)[row].astype(np.float64)
        weights = inputs @ router
        chosen = np.sort(np.argsort(-weights, kind="stable")[:20])  # ⌈0.3·64⌉
        out, backward = numpy_block(inputs[chosen], p, chosen)
        change, r = out - inputs[chosen], weights[chosen][:, None]
        expected[row][chosen] += r * change
        into, named = backward(r * slope[chosen])
        d_r = (slope[chosen] * change).sum(1)
        d_x[row][chosen] += into - r * slope[chosen] + d_r[:, None] * router
        d_router += d_r @ inputs[chosen]
        for name, gradient in named.items():
            d_block[name] += gradient
    bound = 1e-10 if dtype == torch.float64 else 2e-5
    scale = max(1.0, float(np.abs(d_x).max()))
    np.testing.assert_allclose(array(y), expected, rtol=0, atol=bound * scale)
    np.testing.assert_allclose(x.grad.numpy(), d_x, rtol=0, atol=bound * scale)
    sizes = 100 * bound if dtype == torch.float32 else bound * scale
    np.testing.assert_allclose(layer.router.weight.grad.numpy()[0], d_router, rtol=1e-5, atol=sizes)
    for name, parameter in layer.block.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), d_block[name], rtol=1e-5, atol=sizes)


def test_a_tie_goes_to_the_earlier_token() -> None:
    weights = torch.tensor([[1.0, 3.0, 1.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    index, kept = GreatestWeights(0.6)(weights[..., None], weights, None)
    assert index.tolist() == [[0, 1, 4], [0, 1, 2]] and kept is None


@pytest.mark.parametrize(
    ("capacity", "length", "places"), [(0.125, 64, 8), (0.1, 30, 3), (0.7, 10, 7), (0.3, 1, 1), (1.0, 9, 9)]
)
def test_the_number_of_places_is_rounded_up_and_not_off(capacity: float, length: int, places: int) -> None:
    weights = torch.randn(1, length)
    assert GreatestWeights(capacity)(weights[..., None], weights, None)[0].shape[1] == places
    real = torch.ones(1, length, dtype=torch.bool)
    kept = GreatestWeights(capacity)(weights[..., None], weights, real)[1]
    assert int(kept.sum()) == places


def test_padding_takes_no_place_in_training() -> None:
    """Of a padded row as many are chosen as of the row alone, and the same ones."""
    model = make(deep()).train()
    x = tokens(2, 40)
    real = torch.ones(2, 40, dtype=torch.bool)
    real[1, :17] = False
    layer = model.stack.blocks[0]
    chosen: list[Tensor] = []
    layer.chosen.register_forward_hook(lambda module, args, out: chosen.append(out))
    together, alone = model(x, real), model(x[1:, 17:])
    assert chosen[0].sum(1).tolist() == [12, 7] and not chosen[0][1, :17].any()
    assert torch.equal(chosen[0][1, 17:], chosen[1][0])
    close(together[1:, 17:], alone)


def test_a_row_of_padding_trains_without_harm() -> None:
    model = make(deep()).train()
    real = torch.tensor([[True] * 9, [False] * 9])
    auxiliary = AuxiliaryLosses()
    logits = model(tokens(2, 9), real, auxiliary=auxiliary)
    (logits[0].square().sum() + auxiliary.total()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- causality and decoding


def test_training_looks_ahead_and_eval_does_not() -> None:
    model = make(deep())
    first = tokens(1, 30)
    changed = {}
    for train in (True, False):
        model.train(train)
        outputs = []
        for seed in range(8):
            x = tokens(1, 30, seed=40 + seed)
            x[:, :15] = first[:, :15]
            outputs.append(model(x)[:, :15])
        changed[train] = max((outputs[0] - other).abs().max().item() for other in outputs)
    assert changed[True] > 1e-3
    assert changed[False] < 1e-12


RULES = ("predictor", "router")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mixer", ["attention", "recurrent", "crossed"])
def test_step_by_step_is_the_whole_sequence(rule: str, mixer: str) -> None:
    if mixer == "crossed":
        crossed = decoder_block(cross_attention=CrossAttentionConfig(3))
        config: Any = encoder_decoder(decoder_block(), MixtureOfDepthsConfig(crossed, decoding=rule))
    else:
        inner = INNER if mixer == "attention" else replace(INNER, mixer=LinearAttentionConfig(HEADS))
        config = deep(inner, decoding=rule)
    properties.check_stepwise(config, naive_attention)
    properties.check_reordering(config, naive_attention)
    properties.check_batches(config, naive_attention)
    if mixer != "crossed":
        properties.check_ragged_prompts(config, naive_attention)
        properties.check_packing(config, naive_attention)


@pytest.mark.parametrize("rule", RULES)
def test_a_cache_holds_only_the_chosen_tokens_at_their_own_positions(rule: str) -> None:
    model = make(deep(decoding=rule))
    x, state = tokens(1, 40), model.initial_state()
    chosen: list[Tensor] = []
    model.stack.blocks[0].chosen.register_forward_hook(lambda module, args, out: chosen.append(out[0]))
    model.decode(x[:, :25], state)
    for t in range(25, 40):
        model.decode(x[:, t : t + 1], state)
    places = torch.cat(chosen).nonzero()[:, 0]
    assert 2 < len(places) < 38
    cache = state.blocks[0].sublayers["mixer"]
    assert torch.equal(cache.layout.positions[0], places) and cache.keys.shape[2] == len(places)
    assert state.blocks[1].sublayers["mixer"].keys.shape[2] == 40


def test_a_model_in_training_does_not_decode() -> None:
    model = make(deep()).train()
    with pytest.raises(ValueError, match=r"those after them while training.*model\.eval\(\)"):
        model.decode(tokens(1, 5), model.initial_state())


def test_the_rule_of_training_decodes_only_where_it_is_asked_for() -> None:
    """By default a generated token is chosen causally; `decoding="top_k"` compares the tokens of each call."""
    prompt = tokens(1, 20)
    model = make(deep())
    assert isinstance(model.stack.blocks[0].rule, AboveZero)
    written = generate(model, prompt, max_new_tokens=12, temperature=0)
    for n in range(20, 32):
        assert int(model(written[:, :n])[0, -1].argmax()) == int(written[0, n])
    named = make(deep(decoding="top_k"))
    chosen: list[Tensor] = []
    named.stack.blocks[0].chosen.register_forward_hook(lambda module, args, out: chosen.append(out[0]))
    generate(named, prompt, max_new_tokens=3, temperature=0)
    assert [int(c.sum()) for c in chosen] == [6, 1, 1]


# ---------------------------------------------------------------- what teaches the rules


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_loss_of_the_rule_is_its_cross_entropy_against_the_choice(rule: str, checkpoint: bool) -> None:
    model = make(deep(decoding=rule, loss_weight=0.7), Execution(naive_attention, checkpoint)).train()
    auxiliary = AuxiliaryLosses()
    x, real = tokens(2, 20), torch.ones(2, 20, dtype=torch.bool)
    real[1, 12:] = False
    layer, seen = called(model, x, real, auxiliary=auxiliary)
    stream = array(seen[0][0])
    weights = stream @ array(layer.router.weight)[0]
    if rule == "predictor":
        inner = stream @ array(layer.rule.in_proj.weight).T + array(layer.rule.in_proj.bias)
        scores = (inner / (1 + np.exp(-inner))) @ array(layer.rule.out_proj.weight)[0]
        scores = scores + array(layer.rule.out_proj.bias)
    else:
        scores = weights
    total = 0.0
    for row, length in enumerate((20, 12)):
        wanted = np.argsort(-weights[row, :length], kind="stable")[: {20: 6, 12: 4}[length]]
        for t in range(length):
            likely = 1 / (1 + np.exp(-scores[row, t]))
            total -= np.log(likely if t in wanted else 1 - likely)
    assert set(auxiliary.named()) == {"mixture_of_depths"}
    assert auxiliary.total().item() == pytest.approx(0.7 * total / 32, rel=1e-10)
    auxiliary.total().backward()
    taught = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    if rule == "predictor":  # which teaches the model nothing
        assert taught and all(".rule." in name for name in taught)
    else:
        assert "stack.blocks.0.router.weight" in taught and "embedding.weight" in taught


def test_the_choice_of_eval_mode_learns_that_of_training() -> None:
    """After a little training the predictor tells nine of ten choices, where guessing 'no' tells 7 of 10."""
    torch.manual_seed(0)
    model = build(deep()).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    told: list[Tensor] = []
    for step in range(150):
        x, auxiliary = tokens(16, 32, seed=step), AuxiliaryLosses()
        layer, seen = called(model, x, auxiliary=auxiliary) if step == 149 else (model.stack.blocks[0], [])
        logits = model(x, auxiliary=auxiliary)
        loss = nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), x[:, :-1].flatten())
        (loss + 100 * auxiliary.total()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if seen:
            stream = seen[0][0]
            weights = layer.router(stream)[..., 0]
            wanted = torch.zeros_like(weights, dtype=torch.bool)
            wanted.scatter_(1, GreatestWeights(CAPACITY)(stream, weights, None)[0], True)
            told.append(((layer.rule.score(stream, weights) > 0) == wanted).float().mean())
    assert told[0] > 0.85


# ---------------------------------------------------------------- cost and configuration


def test_flops_are_counted_with_the_capacity() -> None:
    full = gpt(50, 32, 4, 4, max_seq_len=64)
    routed = enhance(full, mixture_of_depths(0.25))
    dense, sparse = (count_flops(config, Shape(2, 64)).by_module for config in (full, routed))
    for block in (1, 3):
        inside = sum(n for path, n in sparse.items() if path.startswith(f"stack.blocks.{block}.block."))
        whole = {path: n for path, n in dense.items() if path.startswith(f"stack.blocks.{block}.")}
        attention = sum(n for path, n in whole.items() if path.endswith("branch"))
        assert attention > 0
        assert inside == (sum(whole.values()) - attention) // 4 + attention // 16
        assert sparse[f"stack.blocks.{block}.router"] == 2 * 32 * 128
    assert all(sparse[path] == n for path, n in dense.items() if path.startswith("stack.blocks.2."))


def test_which_blocks_are_changed_and_that_other_enhancements_reach_into_them() -> None:
    plain = gpt(50, 32, 4, 6)
    config = enhance(plain, mixture_of_depths())
    wrapped = [isinstance(block, MixtureOfDepthsConfig) for block in config.stack.blocks]
    assert wrapped == [False, True] * 3
    assert config.stack.blocks[1] == MixtureOfDepthsConfig(plain.stack.blocks[1], 0.125, "predictor", 0.01)
    assert enhance(config, mixture_of_depths()) == config
    before = enhance(plain, rope(), rms_norm(), mixture_of_depths(0.5, 3))
    assert enhance(plain, mixture_of_depths(0.5, 3), rope(), rms_norm()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0.0}, r"capacity is the share of tokens in \(0, 1\], got 0.0; the paper's is 0.125"),
        ({"capacity": 1.5}, "got 1.5"),
        ({"every": 0}, r"every must be 1 \(each block\) or more, got 0; the paper's is 2"),
        ({"every": 7}, "every block of 7 changes none of 6; choose every=6 or less"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        enhance(gpt(50, 32, 4, 6), mixture_of_depths(**options))


def test_a_capacity_of_one_is_the_block_weighted() -> None:
    """Everything chosen: y − x is the plain block's change times the router's weight."""
    model = make(deep(capacity=1.0)).train()
    layer, seen = called(model, tokens(2, 16))
    x, context, y = seen[0]
    close(y, x + layer.router(x) * (layer.block(x, context) - x))


def test_training_compiles_whole() -> None:
    from src.transformer.enhancements.architecture import mixture_of_depths as other
    from src.transformer.models import build as build_other
    from src.transformer.models import gpt as gpt_other

    torch._dynamo.reset()
    model = build_other(other.mixture_of_depths(0.5)(gpt_other(11, 12, 3, 2, max_seq_len=16, dropout=0.0)))
    x = tokens(2, 8)
    compiled = torch.compile(model.double().train(), fullgraph=True, backend="eager")
    close(compiled(x), model(x))


def test_no_position_is_needed() -> None:
    properties.check_stepwise(deep(position=NoPositionConfig()), naive_attention)
