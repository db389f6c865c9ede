"""T5's relative position bias: its buckets, attention with it, and which stack gets which kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.base.test_references import (
    HEADS,
    LENGTHS,
    WIDTH,
    array,
    compare,
    context_of,
    each_precision,
    inputs,
    randomized,
    weights_of,
)
from tests.catalog import each_kernel
from tests.enhancements.position import definitions
from tests.enhancements.position.helpers import ragged, seen
from transformer.base import MultiHeadAttention
from transformer.base.sockets import Kernel, Mask
from transformer.enhancements import enhance, t5_bias
from transformer.enhancements.position.t5_bias import BidirectionalT5Bias, CausalT5Bias, T5BiasConfig
from transformer.models import build, gpt, transformer

# From which distance on each bucket counts, worked out by hand: E·(128/E)^(s/(B−E)), rounded up.
CAUSAL = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
BIDIRECTIONAL = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]


def bucket_of(position: CausalT5Bias, relative: int) -> int:
    return int(position.bucket(torch.tensor([[[relative]]])))


def test_buckets_by_hand() -> None:
    """Borders on both sides, up to a distance of 200; a test below 9 could not tell the two kinds apart."""
    causal, both = CausalT5Bias(1), BidirectionalT5Bias(1)
    for distance in range(200):
        assert bucket_of(causal, -distance) == sum(distance >= border for border in CAUSAL) - 1
        expected = sum(distance >= border for border in BIDIRECTIONAL) - 1
        assert bucket_of(both, -distance) == expected
        assert bucket_of(both, distance) == expected + (16 if distance > 0 else 0)
        assert bucket_of(causal, distance) == 0
    assert (
        bucket_of(causal, -(10**6)) == 31 and bucket_of(both, -(10**6)) == 15 and bucket_of(both, 10**6) == 31
    )
    assert [bucket_of(causal, -n) == bucket_of(both, -n) for n in (0, 8, 9)] == [True, True, False]


@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 9), (16, 64), (12, 20), (64, 256)])
def test_buckets_are_those_of_whole_numbers(n_buckets: int, max_distance: int) -> None:
    relative = torch.arange(-300, 301)
    for module, both in ((CausalT5Bias, False), (BidirectionalT5Bias, True)):
        ours = module(1, n_buckets, max_distance).bucket(relative[None, None])[0, 0].tolist()
        assert ours == [definitions.t5_bucket(int(r), both, n_buckets, max_distance) for r in relative]


@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (16, 64), (64, 256)])
def test_buckets_are_hugging_faces(n_buckets: int, max_distance: int) -> None:
    pytest.importorskip("transformers", reason="Hugging Face's transformers is not installed")
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = torch.arange(-3000, 3001)[None, None]
    for module, both in ((CausalT5Bias, False), (BidirectionalT5Bias, True)):
        expected = T5Attention._relative_position_bucket(relative, both, n_buckets, max_distance)
        assert torch.equal(module(1, n_buckets, max_distance).bucket(relative), expected)


@each_precision
@each_kernel
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_attention_with_the_bias_is_its_definition(
    direction: Any, kernel: Kernel, dtype: torch.dtype, tolerance: float
) -> None:
    layout, positions = ragged()
    both = direction == "bidirectional"
    attention = MultiHeadAttention(WIDTH, HEADS, bias=True)
    position = T5BiasConfig(HEADS, direction).build(WIDTH)
    module = randomized(nn.ModuleDict({"attention": attention, "position": position}), dtype)
    x, visible = inputs(max(LENGTHS), dtype), seen(positions, causal=not both)
    weights = weights_of(module)
    table = weights["position.table.weight"]

    def head(row: int, h: int, q: Any, k: Any, v: Any) -> Any:
        at = positions[row].astype(int)
        buckets = np.array([[definitions.t5_bucket(int(j - i), both) for j in at] for i in at])
        value, back = definitions.biased_head(q, k, v, visible[row], table[buckets, h])

        def backward(dy: Any) -> Any:
            gradients = back(dy)
            by_bucket = np.zeros_like(table)
            np.add.at(by_bucket[:, h], buckets, gradients.pop("bias"))
            return gradients | {"position.table.weight": by_bucket}

        return value, backward

    bare = {name.removeprefix("attention."): w for name, w in weights.items()}
    value, back = definitions.attention_layer(array(x), bare, HEADS, head)

    def named(dy: Any) -> Any:
        gradients = back(dy)
        keep = ("x", "position.table.weight")
        return {n if n in keep else f"attention.{n}": g for n, g in gradients.items()}

    output = attention(x, context_of(kernel, layout, Mask(not both), position=position))
    compare(output, {"x": x}, module, (value, named), tolerance)


def test_an_encoder_is_biased_both_ways_and_a_decoder_to_the_past() -> None:
    config = enhance(transformer(100, 16, 2, 3), t5_bias())
    assert config.encoder.position == T5BiasConfig(2, "bidirectional")
    assert config.decoder.position == T5BiasConfig(2, "causal")
    assert enhance(gpt(100, 16, 4, 1), t5_bias(8, 9)).stack.position == T5BiasConfig(4, "causal", 8, 9)
    model = build(config)
    tables = [name for name, _ in model.named_parameters() if "table" in name]
    assert tables == ["encoder.position.table.weight", "decoder.position.table.weight"]  # one for each stack
    assert (
        type(model.encoder.position) is BidirectionalT5Bias and type(model.decoder.position) is CausalT5Bias
    )


def test_settings_that_make_no_buckets_are_refused() -> None:
    message = (
        r"^n_buckets 30 cannot be halved for the direction and again for the exact distances; "
        r"the nearest number that can is 32$"
    )
    with pytest.raises(ValueError, match=message):
        T5BiasConfig(n_buckets=30)
    with pytest.raises(
        ValueError,
        match=r"^max_distance 16 is within the distances that n_buckets 32 may tell apart one by one; the least is 17$",
    ):
        T5BiasConfig(max_distance=16)
