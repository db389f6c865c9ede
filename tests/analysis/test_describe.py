"""What `inspect` shows is complete, and its numbers add up."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.tree import Tree

from tests.families import family_config
from transformer.analysis.cost import count_parameters, shapes_only
from transformer.analysis.describe import parts_tree, settings_table
from transformer.base.normalization import LayerNormConfig
from transformer.base.transformer import transformer
from transformer.enhancements import SWITCHES, apply_switches
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.models import FAMILIES, ModelConfig, build

pytestmark = pytest.mark.shapes_unchecked


def text_of(renderable: object) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def tree_of(config: ModelConfig) -> tuple[Tree, int]:
    with shapes_only():
        model = build(config)
    return parts_tree(config, model), count_parameters(model)


def weights(node: Tree) -> int:
    found = re.search(r"([\d,]+) weights$", str(node.label))
    return int(found[1].replace(",", "")) if found else 0


OWN_WEIGHTS = ("mixture_of_depths", "masked_head")
"""Kinds of part that have weights besides those of the parts in them: a router, a map."""


def check_sums(node: Tree) -> int:
    """Check below every node that its parts' weights add up to its own; return how many sums there were."""
    sums = 0
    if any(weights(child) for child in node.children):
        times = (re.search(r" (\d+)–(\d+), each", str(child.label)) for child in node.children)
        repeats = [int(found[2]) - int(found[1]) + 1 if found else 1 for found in times]
        parts = [n * weights(child) for n, child in zip(repeats, node.children, strict=True)]
        own = any(f": {kind} " in str(node.label) for kind in OWN_WEIGHTS)
        assert sum(parts) == weights(node) or (own and sum(parts) < weights(node)), (str(node.label), parts)
        sums += 1
    return sums + sum(check_sums(child) for child in node.children)


EACH = [(family, None) for family in FAMILIES] + [("transformer", switch) for switch in SWITCHES]


@pytest.mark.parametrize(("family", "switch"), EACH)
def test_the_weights_of_the_parts_add_up(family: str, switch: str | None) -> None:
    config = family_config(family, vocab_size=31, d_model=24, n_heads=3, n_layers=4)
    config, _ = apply_switches(config, {switch: True} if switch else {})
    tree, total = tree_of(config)
    assert weights(tree) == total
    stacks = 2 if family in ("transformer", "t5") else 1
    ends = stacks if switch == "use_resi_dual" else 0  # the norm that ends its stacks holds another
    assert check_sums(tree) >= 1 + 2 * stacks + ends  # more where layers differ


def test_parts_of_a_known_model() -> None:
    text = text_of(tree_of(transformer(10000, 512, 8, 6))[0])
    for line in (
        "model: encoder_decoder (vocab_size 10000, d_model 512, tie_embeddings true)  49,221,632 weights",
        "embedding: embedding (scaled true)  5,120,000 weights",
        "blocks 1–6, each: block (position null)  4,199,936 weights",
        "mixer: multi_head_attention (n_heads 8, dropout 0.0, bias false)  1,048,576 weights",
        "norm: layer_norm (epsilon 1e-05)  3,072 weights",
        "initialization: xavier_uniform",
    ):
        assert re.search(rf"── {re.escape(line)}\n|^{re.escape(line)}\n", text), line


def test_only_equal_neighbours_are_folded() -> None:
    config = transformer(11, 12, 3, 5)
    block = config.encoder.blocks[0]
    other: Any = replace(block, norm=LayerNormConfig(1e-6), position=RotaryPositionConfig())
    blocks = (block, block, other, block, block)
    tree, _ = tree_of(replace(config, encoder=replace(config.encoder, blocks=blocks)))
    names = re.findall(r"blocks (\S+?)[:,]", text_of(tree.children[0]))
    assert names == ["1–2", "3", "4–5"]
    assert check_sums(tree) == 7
    assert text_of(tree).count("position: rotary_position") == 1


def test_every_setting_is_shown_with_where_it_was_written() -> None:
    data = {
        "model": {"family": "gpt", "d_model": 512, "use_rope": True},
        "evaluation": {"prompt": "\n", "split": None},
        "training": {"seed": 3},
    }
    origin = {"model": "a.yaml:1", "model.d_model": "a.yaml:2", "training.seed": "--training.seed"}
    lines = [re.split(r"  +", line.strip()) for line in text_of(settings_table(data, origin)).splitlines()]
    assert lines == [
        ["setting", "value", "from"],
        ["model.family", "gpt", "default"],
        ["model.d_model", "512", "a.yaml:2"],
        ["model.use_rope", "true", "default"],
        ["evaluation.prompt", r"'\n'", "default"],
        ["evaluation.split", "null", "default"],
        ["training.seed", "3", "--training.seed"],
    ]


def test_markup_in_a_setting_is_shown_and_not_obeyed() -> None:
    text = text_of(settings_table({"output": {"dir": "[red]x[/red]"}}, {"output.dir": "[b]f.yaml:1"}))
    assert "[red]x[/red]" in text and "[b]f.yaml:1" in text
