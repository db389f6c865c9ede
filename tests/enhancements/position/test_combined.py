"""Position schemes at work together: each site is what the schemes do one after the other."""

from __future__ import annotations

import torch

from transformer.base.position import LearnedPositionConfig, NoPositionConfig
from transformer.base.sockets import Layout
from transformer.enhancements.position.alibi import ALiBiConfig
from transformer.enhancements.position.combined import CombinedPositionConfig
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.enhancements.position.t5_bias import T5BiasConfig

TOKENS = torch.arange(140).view(2, 70)
REAL = torch.ones_like(TOKENS, dtype=torch.bool)
REAL[0, :9] = REAL[1, 40:] = False


def test_each_site_by_hand() -> None:
    torch.manual_seed(0)
    parts = (
        LearnedPositionConfig(80),
        T5BiasConfig(12, "bidirectional"),
        RotaryPositionConfig(),
        ALiBiConfig(12),
    )
    position = CombinedPositionConfig(parts).build(24).double()
    learned, t5, rope, alibi = position.schemes
    layout = Layout.of(TOKENS, REAL)
    x, q, k = (
        torch.randn(shape, dtype=torch.float64) for shape in ((2, 70, 24), (2, 12, 70, 8), (2, 4, 70, 8))
    )
    assert torch.equal(position.embed(x, layout), x + learned.table.weight[layout.positions])
    assert all(map(torch.equal, position.rotate(q, k, layout), rope.rotate(q, k, layout)))
    both = position.bias(layout, layout)
    assert torch.allclose(both, t5.bias(layout, layout) + alibi.bias(layout, layout))
    assert not torch.equal(both, t5.bias(layout, layout).expand_as(both))
    assert position.max_seq_len == 80


def test_without_a_bias_there_is_none() -> None:
    position = CombinedPositionConfig((LearnedPositionConfig(80), LearnedPositionConfig(70))).build(24)
    layout = Layout.of(TOKENS, REAL)
    assert position.bias(layout, layout) is None and position.max_seq_len == 70
    assert CombinedPositionConfig((NoPositionConfig(),)).build(24).max_seq_len is None
