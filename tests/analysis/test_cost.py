"""Parameters against numbers known from papers, operations against PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.families import family_config
from transformer import GPT, Transformer
from transformer.analysis.cost import (
    Shape,
    count_flops,
    count_parameters,
    parameters_by_part,
    shapes_only,
)
from transformer.base.transformer import transformer
from transformer.enhancements import SWITCHES, apply_switches
from transformer.models import FAMILIES, EncoderDecoder, EncoderOnly, ModelConfig, build, gpt

pytestmark = pytest.mark.shapes_unchecked


def test_parameters_of_known_models() -> None:
    with shapes_only():
        gpt2, paper = GPT(), Transformer(37000)
    assert count_parameters(gpt2) == 124_439_808  # GPT-2 small as published
    blocks = 6 * (4 * 512**2 + 2 * 512 * 2048 + 2048 + 512 + 2 * 2 * 512)
    crossing = 6 * (4 * 512**2 + 2 * 512)
    assert count_parameters(paper) == 37000 * 512 + 2 * blocks + crossing


def test_parameters_by_part_add_up_and_count_what_is_tied_once() -> None:
    model = Transformer(vocab_size=50, d_model=16, n_heads=2, n_layers=2)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == count_parameters(model)
    assert parts["embedding"] == 50 * 16 and "lm_head" not in parts
    assert parts["decoder.blocks.1.cross_attention.branch.q_proj"] == 16 * 16


def hidden_only(model: EncoderOnly, tokens: Tensor) -> Tensor:
    """The logits of as many tokens as are hidden in training."""
    hidden = model.encode(tokens).flatten(0, 1)
    return model.lm_head(hidden[None, : round(0.15 * len(hidden))])


def counted_by_torch(config: ModelConfig, shape: Shape, *, backward: bool) -> int:
    """Carry the pass out under PyTorch's counter of matrix products."""
    model = build(config).train()
    target = torch.zeros(shape.rows, shape.length, dtype=torch.long)
    source = torch.zeros(shape.rows, shape.source_length, dtype=torch.long)
    inputs = (source, target) if isinstance(model, EncoderDecoder) else (target,)
    with FlopCounterMode(display=False) as counter:
        logits = hidden_only(model, target) if isinstance(model, EncoderOnly) else model(*inputs)
        if backward:
            logits.sum().backward()
    return int(counter.get_total_flops())


EACH = [(family, None) for family in FAMILIES] + [("transformer", switch) for switch in SWITCHES]


@pytest.mark.parametrize(("family", "switch"), EACH)
def test_operations_equal_those_that_torch_counts(family: str, switch: str | None) -> None:
    n_layers = 2 if switch in (None, "use_mixture_of_depths") else 1  # every other one is routed
    config = family_config(family, vocab_size=101, d_model=48, n_heads=4, n_layers=n_layers)
    config, _ = apply_switches(config, {} if switch is None else {switch: True})
    shape = Shape(3, 17, 29 if family in ("transformer", "t5") else 0)
    flops = count_flops(config, shape)
    entries = {"mamba": 2, "hybrid": 1}.get(family, 0) * (3 * 17 * 96 * 16)  # of Mamba's states
    assert flops.forward == counted_by_torch(config, shape, backward=False) + 3 * entries
    # some products of other mixers have a constant, and a predictor of depths hands no gradient on
    if "" not in flops.by_module and switch != "use_mixture_of_depths":
        assert 3 * flops.forward == counted_by_torch(config, shape, backward=True)
    assert flops.training_per_token == pytest.approx(3 * flops.forward / (3 * 17))


def test_operations_by_hand() -> None:
    flops = count_flops(gpt(vocab_size=7, d_model=8, n_heads=2, n_layers=1, d_ff=20), Shape(2, 5))
    assert flops.by_module == {
        **{f"stack.blocks.0.mixer.branch.{name}_proj": 2 * 10 * 8 * 8 for name in ("q", "k", "v", "out")},
        "stack.blocks.0.mixer.branch": 2 * 2 * (2 * 5 * 5 * 8),
        "stack.blocks.0.feed_forward.branch.up_proj": 2 * 10 * 8 * 20,
        "stack.blocks.0.feed_forward.branch.down_proj": 2 * 10 * 8 * 20,
        "lm_head": 2 * 10 * 8 * 7,
    }


def test_a_longer_source_costs_only_where_it_is_read() -> None:
    config = transformer(vocab_size=11, d_model=8, n_heads=2, n_layers=1)
    short, long = (count_flops(config, Shape(1, 4, length)).by_module for length in (6, 12))
    same = {name for name in short if short[name] == long[name]}
    assert "decoder.blocks.0.mixer.branch" in same and "lm_head" in same
    assert long["encoder.blocks.0.mixer.branch"] == 4 * short["encoder.blocks.0.mixer.branch"]
    assert (
        long["decoder.blocks.0.cross_attention.branch"]
        == 2 * short["decoder.blocks.0.cross_attention.branch"]
    )


def test_counting_leaves_the_random_numbers_of_the_caller_alone() -> None:
    state = torch.get_rng_state()
    count_flops(gpt(vocab_size=7, d_model=8, n_heads=2, n_layers=1), Shape(1, 2))
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a batch of 0 × 4 tokens \(source 0\) cannot be; rows and length"):
        Shape(0, 4)
