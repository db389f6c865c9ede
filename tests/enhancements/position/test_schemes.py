"""All position schemes together: in caches, in cross-attention, and one after the other."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.catalog import each_kernel, make
from tests.enhancements.position.helpers import in_segments, language_model
from tests.properties import tokens
from transformer.base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from transformer.base.position import NoPositionConfig
from transformer.base.sockets import Execution, Kernel, Layout, Mask, Memory, Position
from transformer.base.stack import StackConfig
from transformer.enhancements import (
    alibi,
    differential,
    enhance,
    grouped_query,
    naive_attention,
    rope,
    shaw,
    t5_bias,
    transformer_xl,
    xpos,
)
from transformer.enhancements.position.alibi import ALiBiConfig
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.enhancements.position.schemes import edit_stacks, heads_of
from transformer.enhancements.position.t5_bias import T5BiasConfig
from transformer.models import GPT, Transformer, bert, gpt, transformer

SCHEMES = {
    "rope": rope(),
    "xpos": xpos(),
    "alibi": alibi(),
    "t5_bias": t5_bias(),
    "shaw": shaw(),
    "transformer_xl": transformer_xl(),
}
SWITCHED = [
    "use_rope",
    "use_xpos",
    "use_alibi",
    "use_t5_bias",
    "use_relative_position",
    "use_transformer_xl",
]


@torch.no_grad()
@each_kernel
@pytest.mark.parametrize("name", SCHEMES)
def test_a_cache_split_at_64_of_130_tokens_is_the_whole_sequence(name: str, kernel: Kernel) -> None:
    """12 heads; also with the first 5 tokens of one row padding, which moves its positions against the columns."""
    model = make(enhance(language_model(), SCHEMES[name]), Execution(kernel))
    x, real = tokens(2, 130), torch.ones(2, 130, dtype=torch.bool)
    torch.testing.assert_close(in_segments(model, x, [64, 66]), model(x), rtol=0, atol=1e-12)
    real[1, :5] = False
    state = model.initial_state()
    parts = [model.decode(x[:, :64], state, real[:, :64]), model.decode(x[:, 64:], state)]
    whole = torch.cat(parts, dim=1)
    torch.testing.assert_close(whole[:1], model(x[:1]), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole[1:, 5:], model(x[1:, 5:]), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", SCHEMES)
def test_order_matters_under_every_scheme(name: str) -> None:
    """Without a scheme an encoder cannot tell the order of its source; with any of these it can."""
    for config, tells in ((transformer(11, 16, 2, 1), True), (nowhere(), False)):
        model = make(enhance(config, SCHEMES[name]) if tells else config)
        x = tokens(1, 9)
        swapped = x[:, [1, 0, *range(2, 9)]]
        first, second = model.encode(x).hidden, model.encode(swapped).hidden
        assert torch.allclose(first[:, 2:], second[:, 2:], atol=1e-12) != tells


def nowhere() -> Any:
    return edit_stacks(transformer(11, 16, 2, 1), lambda stack: replace(stack, position=NoPositionConfig()))


class Forbidden(Position):
    """A scheme that nothing may ask."""

    def rotate(self, q: Any, k: Any, layout: Layout) -> Any:
        raise AssertionError("cross-attention asked for a rotation")

    def bias(self, queries: Layout, keys: Layout) -> Any:
        if queries is not keys:
            raise AssertionError("cross-attention asked for a bias")
        return None


@torch.no_grad()
def test_cross_attention_has_no_positions() -> None:
    from transformer.base.sockets import Context

    hidden, layout = torch.randn(1, 5, 8), Layout(torch.arange(3)[None])
    memory = Memory(hidden, Layout(torch.arange(5)[None]))
    cross = CrossAttentionConfig(2).build(8)
    outputs = [
        cross(torch.ones(1, 3, 8), Context(layout, Mask(True), Execution(naive_attention), position, memory))
        for position in (Position(), Forbidden())
    ]
    assert torch.equal(*outputs) and torch.equal(outputs[0][:, 0], outputs[0][:, 2])


@torch.no_grad()
@pytest.mark.parametrize("name", SCHEMES)
def test_a_decoder_reads_its_source_without_positions(name: str) -> None:
    """A decoder whose self-attention gives nothing: every target token reads the same, wherever it stands."""
    model = make(enhance(transformer(11, 16, 2, 1), SCHEMES[name]))
    model.decoder.blocks[0].mixer.branch.out_proj.weight.zero_()
    logits = model(tokens(1, 9), torch.full((1, 70), 3))
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits), rtol=0, atol=1e-12)


def test_the_last_scheme_leaves_nothing_of_those_before() -> None:
    for config in (gpt(100, 16, 2, 2), transformer(100, 16, 2, 2)):
        for first, second in itertools.product(SCHEMES, SCHEMES):
            if second == "xpos":  # xPos keeps the longest length of the scheme before it
                continue
            assert enhance(config, SCHEMES[first], SCHEMES[second]) == enhance(config, SCHEMES[second])


def test_alibi_reads_the_number_of_heads() -> None:
    assert enhance(gpt(100, 24, 12, 1), alibi()).stack.position == ALiBiConfig(12)
    assert enhance(gpt(100, 24, 12, 1), grouped_query(3), alibi()).stack.position == ALiBiConfig(12)
    assert enhance(gpt(100, 24, 12, 1), alibi(5)).stack.position == ALiBiConfig(5)
    pair = transformer(100, 24, 12, 1)
    fewer = replace(pair.decoder.blocks[0], mixer=MultiHeadAttentionConfig(4))
    pair = enhance(replace(pair, decoder=replace(pair.decoder, blocks=(fewer,))), alibi())
    assert pair.encoder.position == ALiBiConfig(12) and pair.decoder.position == ALiBiConfig(4)
    model = GPT(
        vocab_size=11, d_model=24, n_heads=6, n_layers=1, use_differential_attention=True, use_alibi=True
    )
    assert model.config.stack.position == ALiBiConfig(6)  # two maps for each of three heads
    assert enhance(gpt(100, 24, 6, 1), differential(), t5_bias()).stack.position == T5BiasConfig(6)
    assert model(tokens(1, 4)).shape == (1, 4, 11)


def test_stacks_of_no_one_number_of_heads_are_refused() -> None:
    block = language_model().stack.blocks[0]
    mixed = StackConfig((block, replace(block, mixer=MultiHeadAttentionConfig(4))))
    with pytest.raises(
        ValueError,
        match="^a bias for each head needs one number of heads for the whole stack, which has layers of 4 and 12 "
        "heads; say n_heads, or give each block a position of its own$",
    ):
        heads_of(mixed)
    with pytest.raises(ValueError, match=r"the whole stack, which has no heads; say n_heads"):
        heads_of(StackConfig((replace(block, mixer=None),)))


def test_relative_attention_does_not_replace_another_kind_in_silence() -> None:
    message = (
        "relative attention takes the place of multi_head_attention, but the stack has grouped_query_attention; "
        "leave out what changed its attention, or choose rope() or alibi()"
    )
    for scheme in (shaw(), transformer_xl()):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            enhance(gpt(100, 16, 2, 1), grouped_query(1), scheme)
    block = replace(language_model().stack.blocks[0], mixer=None)
    with pytest.raises(ValueError, match="but the stack has no mixer; leave out"):
        enhance(replace(language_model(), stack=StackConfig((block,))), shaw())


def test_switches_are_these_schemes_and_exclude_each_other() -> None:
    dims: Any = {"vocab_size": 11, "d_model": 16, "n_heads": 2, "n_layers": 1}
    for switch, scheme in zip(SWITCHED, SCHEMES.values(), strict=True):
        assert GPT(**dims, **{switch: True}).config == enhance(gpt(**dims), scheme)
        assert Transformer(**dims, **{switch: True}).config == enhance(transformer(**dims), scheme)
    for first, second in itertools.combinations(SWITCHED, 2):
        with pytest.raises(
            TypeError, match=f"^{first} and {second} both decide the position; switch one of them off$"
        ):
            GPT(**dims, **{first: True, second: True})


def test_a_fused_kernel_may_be_used_with_every_scheme() -> None:
    for switch in SWITCHED:
        model = GPT(
            vocab_size=11, d_model=16, n_heads=2, n_layers=1, use_flash_attention=True, **{switch: True}
        )
        model(tokens(1, 8)).sum().backward()


def test_an_encoder_that_stands_alone_reads_both_ways() -> None:
    config = bert(11, 16, 2, 1)
    assert enhance(config, t5_bias()).stack.position == T5BiasConfig(2, "bidirectional")
    assert enhance(config, xpos()).stack.position == RotaryPositionConfig()
