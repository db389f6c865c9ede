"""LayerDrop: how often a block is left out, and that a model of some of the blocks is what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import properties
from tests.catalog import make
from tests.properties import close, tokens
from transformer.base.sockets import Execution
from transformer.enhancements import enhance, layer_drop, naive_attention, rope
from transformer.enhancements.architecture.layer_drop import LayerDropConfig
from transformer.generation import generate
from transformer.models import bert, build, gpt
from transformer.models.shallow import only_blocks

PLAIN = replace(gpt(11, 24, 12, 4, max_seq_len=64, dropout=0.0))
DROPPED = enhance(PLAIN, layer_drop(0.3))


def test_a_block_is_left_out_as_often_as_it_says_and_then_changes_nothing() -> None:
    model = make(DROPPED).train()
    layer, calls = model.stack.blocks[1], []
    layer.block.register_forward_hook(lambda module, args, out: calls.append(out))
    seen: list[tuple] = []
    layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out, len(calls))))
    torch.manual_seed(0)
    n = 400
    for _ in range(n):
        model(tokens(1, 3))
    ran = [
        now - before for before, now in zip([0, *(s[2] for s in seen)], (s[2] for s in seen), strict=False)
    ]
    assert abs(n - sum(ran) - 0.3 * n) < 4 * math.sqrt(n * 0.3 * 0.7)
    outputs = iter(calls)
    for (x, y, _), used in zip(seen, ran, strict=True):
        assert torch.equal(y, next(outputs) if used else x)


def test_in_eval_mode_it_is_the_plain_model() -> None:
    dropped, plain = make(DROPPED), make(PLAIN)
    x = tokens(2, 64)
    plain.load_state_dict({name.replace(".block.", "."): t for name, t in dropped.state_dict().items()})
    assert torch.equal(dropped(x), plain(x))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_block_that_is_left_out_learns_nothing(checkpoint: bool) -> None:
    model = make(enhance(PLAIN, layer_drop(0.5)), Execution(naive_attention, checkpoint)).train()
    torch.manual_seed(1)
    model(tokens(2, 8)).square().sum().backward()
    learned = [any(p.grad is not None for p in block.parameters()) for block in model.stack.blocks]
    assert len(set(learned)) == 2


def test_rates_may_grow_along_the_stack() -> None:
    config = enhance(PLAIN, layer_drop(0.3, growing=True))
    assert [block.rate for block in config.stack.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert enhance(config, layer_drop(0.3)) == DROPPED  # wrapped once
    assert enhance(DROPPED, rope()) == enhance(PLAIN, rope(), layer_drop(0.3))
    with pytest.raises(ValueError, match=r"a probability from 0 to below 1, got 1.0; try 0.2"):
        layer_drop(1.0)


def test_decoding_and_checkpointing() -> None:
    properties.check_stepwise(DROPPED, naive_attention)
    properties.check_reordering(DROPPED, naive_attention)
    properties.check_checkpointing(DROPPED)
    assert isinstance(DROPPED.stack.blocks[0], LayerDropConfig)


@pytest.mark.parametrize("numbers", [range(2), [0, 2], [3]])
def test_a_model_of_some_blocks_is_those_blocks(numbers: list[int]) -> None:
    """Equal to a model built small that was given the weights, and to the blocks called by hand."""
    model = make(PLAIN)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shallow = only_blocks(model, numbers)
    x = tokens(2, 64)
    other = build(shallow.config).double().eval()
    renamed = {name: t for name, t in before.items() if "blocks" not in name}
    for new, old in enumerate(numbers):
        prefix = f"stack.blocks.{old}."
        renamed |= {
            f"stack.blocks.{new}.{name[len(prefix) :]}": t
            for name, t in before.items()
            if name.startswith(prefix)
        }
    other.load_state_dict(renamed)
    close(shallow(x), other(x))
    assert torch.equal(
        generate(shallow, x[:, :5], 6, temperature=0), generate(other, x[:, :5], 6, temperature=0)
    )
    assert model.state_dict().keys() == before.keys() and len(model.stack.blocks) == 4
    assert shallow.embedding.weight is model.embedding.weight
    with torch.no_grad():
        model.stack.blocks[numbers[0]].mixer.branch.q_proj.weight.add_(1.0)
    assert not torch.allclose(shallow(x), other(x))  # weights are shared


def test_an_encoder_can_be_left_early_and_wrong_numbers_are_refused() -> None:
    model = build(bert(11, 12, 3, 3, max_seq_len=16)).eval()
    assert only_blocks(model, range(1))(tokens(2, 5)).shape == (2, 5, 11)
    for numbers, given in (([], "none"), ([3], "3"), ([-1, 0], "-1, 0")):
        with pytest.raises(ValueError, match=f"the blocks of this model are 0 to 2; got {given}"):
            only_blocks(model, numbers)


def test_a_shallow_model_is_saved_as_what_it_is(tmp_path: Path) -> None:
    from transformer.interop import to_huggingface

    model = build(gpt(11, 24, 12, 4, max_seq_len=64)).eval()
    to_huggingface(only_blocks(model, range(2)), tmp_path / "two")
    from transformer.interop import load

    x = tokens(1, 9)
    torch.testing.assert_close(load(tmp_path / "two")(x), only_blocks(model, range(2))(x))
