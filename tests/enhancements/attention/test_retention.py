"""Retention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.enhancements.attention import linear_references as references
from tests.enhancements.attention.linear_references import (
    HEADS,
    WIDTH,
    check_definition,
    context_of,
    randomized,
)
from transformer.base.sockets import Layout
from transformer.base.transformer import EncoderDecoder, transformer
from transformer.enhancements import enhance, retention, rope
from transformer.enhancements.attention.retention import Retention, RetentionConfig, log_decays
from transformer.enhancements.position.rope import RotaryPosition
from transformer.models import DecoderOnly, gpt


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("turn", [False, True], ids=["plain", "rope"])
def test_it_is_its_definition(turn: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Pair by pair, with γ to the power of the distance in real tokens; rotated by the stack's scheme."""
    module = randomized(Retention(WIDTH, HEADS), dtype)
    options = {"position": RotaryPosition()} if turn else {}
    check_definition(
        module, lambda x, w: references.retention(x, w, turn), dtype, tolerance, left=turn, **options
    )


def test_the_decays_are_the_papers() -> None:
    """1 − 2^(−5−i): 31/32 for the first head."""
    assert log_decays(4).exp().flatten().tolist() == pytest.approx([31 / 32, 63 / 64, 127 / 128, 255 / 256])
    assert Retention(16, 4).state_dict().keys().isdisjoint({"log_decay"})


def test_the_norm_is_a_group_norm_of_each_token() -> None:
    """nn.GroupNorm over (tokens, channels); over (batch, channels, time) it would average over later tokens."""
    module = randomized(Retention(16, 4))
    module.gate_proj = nn.Linear(16, 32).double()
    with torch.no_grad():
        module.gate_proj.weight.zero_()
        module.gate_proj.bias.fill_(1.0)
    seen = []
    module.out_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    module(x, context_of(Layout(torch.arange(9)[None])))
    projected = (module.q_proj(x), module.k_proj(x) / 2, module.v_proj(x))
    q, k, v = (y.unflatten(-1, (4, -1)).transpose(1, 2) for y in projected)
    distance = (torch.arange(9)[:, None] - torch.arange(9)).double()
    heads = (q @ k.mT * (distance * module.log_decay[0]).exp().tril() @ v).transpose(1, 2).flatten(2)
    normed = nn.GroupNorm(4, 32, affine=False).double()(heads.flatten(0, 1)).unflatten(0, (2, 9))
    swish = torch.ones((), dtype=torch.float64).sigmoid()
    assert (seen[0] - swish * normed).abs().max() <= 1e-12


def test_it_reads_from_left_to_right_only() -> None:
    model = EncoderDecoder(enhance(transformer(20, 16, 4, 2), retention()))
    assert all(block.mixer.kind == "retention" for block in model.config.decoder.blocks)  # type: ignore[attr-defined]
    assert all(block.mixer.kind == "multi_head_attention" for block in model.config.encoder.blocks)  # type: ignore[attr-defined]
    tokens = torch.zeros(1, 5, dtype=torch.long)
    assert model(tokens, tokens).isfinite().all()
    module = RetentionConfig(2).build(8)
    with pytest.raises(
        ValueError, match="retention reads from left to right, but this stack is not causal; use lin"
    ):
        module(torch.randn(1, 4, 8), context_of(Layout(torch.arange(4)[None]), causal=False))


def test_the_papers_model_is_rotated() -> None:
    """8d² weights in a layer; order comes from the stack's rotation, and with it differs from without."""
    config = enhance(gpt(vocab_size=20, d_model=16, n_heads=2, n_layers=1, dropout=0.0), retention(), rope())
    model = DecoderOnly(config)
    mixer = model.stack.blocks[0].mixer.branch  # type: ignore[union-attr]
    assert sum(p.numel() for p in mixer.parameters()) == 8 * 16**2
    x, context = torch.randn(1, 6, 16), context_of(Layout(torch.arange(6)[None]))
    turned = context_of(context.layout, position=model.stack.position)
    assert not torch.allclose(mixer(x, context), mixer(x, turned))


def test_the_state_does_not_grow() -> None:
    module = Retention(WIDTH, HEADS)
    state, sizes = module.initial_state(), set()
    for length in (5, 1, 64, 1, 200):
        module(torch.randn(2, length, WIDTH), context_of(Layout(torch.arange(length)[None])), state)
        sizes.add(sum(x.nbytes for x in state.tensors.values()))
    assert sizes == {2 * HEADS * 4 * 8 * 4}
