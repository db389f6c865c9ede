"""Norms and placements against the layers of published models, with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.base.test_references import context_of, randomized
from transformer.base import scaled_dot_product_attention
from transformer.base.sockets import Context, Layer, Layout, Mask
from transformer.base.stack import Block
from transformer.enhancements.normalization.post_sublayer_norm import PostSublayerNorm
from transformer.enhancements.normalization.rms_norm import RMSNorm
from transformer.enhancements.normalization.sandwich_norm import SandwichNorm
from transformer.enhancements.normalization.unit_offset_rms_norm import UnitOffsetRMSNorm

WIDTH = 48
gemma = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
olmo = pytest.importorskip("transformers.models.olmo2.modeling_olmo2")


class Linear(Layer):
    """A sub-layer of one linear map: what is compared here is where the norms stand around it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Context, state: Any = None) -> Tensor:
        return x @ self.weight.T


class TheirAttention(nn.Module):
    """The same, as their layers call their attention."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden_states: Tensor, **options: Any) -> tuple[Tensor, None]:
        return hidden_states @ self.weight.T, None


class TheirNetwork(TheirAttention):
    def forward(self, hidden_states: Tensor, **options: Any) -> Any:
        return hidden_states @ self.weight.T


def settings(config: Any) -> Any:
    return config(
        hidden_size=WIDTH, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=12
    )


def compare_layers(ours: Block, theirs: nn.Module, norms: dict[str, str]) -> None:
    """Give both the same weights, and compare the output and its gradient by the input."""
    theirs.self_attn = TheirAttention(ours.get_submodule("mixer.branch").weight)
    theirs.mlp = TheirNetwork(ours.get_submodule("feed_forward.branch").weight)
    for name, path in norms.items():
        theirs.get_submodule(name).load_state_dict(ours.get_submodule(path).state_dict())
    x = torch.randn(2, 64, WIDTH, dtype=torch.float64, requires_grad=True)
    context = context_of(
        scaled_dot_product_attention, Layout.of(torch.zeros(2, 64, dtype=torch.long)), Mask()
    )
    made = theirs.double()(x, position_embeddings=None)
    pair = [ours(x, context), made[0] if isinstance(made, tuple) else made]
    slope = torch.randn_like(x)
    gradients = [torch.autograd.grad(y, x, slope)[0] for y in pair]
    # their norms compute in float32 whatever they are given
    torch.testing.assert_close(*pair, rtol=0, atol=2e-5)
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-5)


def test_post_sublayer_norm_is_olmo_2s() -> None:
    wirings = {name: PostSublayerNorm(Linear(), RMSNorm(WIDTH)) for name in ("mixer", "feed_forward")}
    ours = randomized(Block(dict(wirings)), torch.float64)
    theirs = olmo.Olmo2DecoderLayer(settings(olmo.Olmo2Config), 0)
    theirs_norms = {
        "post_attention_layernorm": "mixer.norm",
        "post_feedforward_layernorm": "feed_forward.norm",
    }
    for name in theirs_norms:
        theirs.get_submodule(name).variance_epsilon = 1e-6
    compare_layers(ours, theirs, theirs_norms)


def test_sandwich_norm_with_unit_offset_is_gemma_2s() -> None:
    wirings = {
        name: SandwichNorm(Linear(), UnitOffsetRMSNorm(WIDTH), UnitOffsetRMSNorm(WIDTH))
        for name in ("mixer", "feed_forward")
    }
    ours = randomized(Block(dict(wirings)), torch.float64)
    theirs_norms = {
        "input_layernorm": "mixer.norm",
        "post_attention_layernorm": "mixer.output_norm",
        "pre_feedforward_layernorm": "feed_forward.norm",
        "post_feedforward_layernorm": "feed_forward.output_norm",
    }
    compare_layers(ours, gemma.Gemma2DecoderLayer(settings(gemma.Gemma2Config), 0), theirs_norms)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unit_offset_rms_norm_is_gemmas_to_the_bit(dtype: torch.dtype) -> None:
    ours, theirs = UnitOffsetRMSNorm(WIDTH).to(dtype), gemma.Gemma2RMSNorm(WIDTH, eps=1e-6).to(dtype)
    assert torch.equal(ours.weight, theirs.weight)
    ours.weight.normal_(std=0.3)
    theirs.load_state_dict(ours.state_dict())
    x = (torch.randn(2, 64, WIDTH) * 3).to(dtype)
    assert torch.equal(ours(x), theirs(x))
