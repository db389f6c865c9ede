"""What the tests of the position schemes share: ragged rows of 70, 33 and 1 tokens, 12 heads, small models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.base.test_references import HEADS, LENGTHS, WIDTH, array, real_tokens
from tests.references import Array
from transformer.base.attention import MultiHeadAttentionConfig
from transformer.base.feed_forward import ReluFeedForwardConfig
from transformer.base.normalization import LayerNormConfig
from transformer.base.position import NoPositionConfig
from transformer.base.sockets import Layout, PositionConfig
from transformer.base.stack import BlockConfig, StackConfig
from transformer.base.wiring import PreNormConfig
from transformer.models import DecoderOnlyConfig

E = WIDTH // HEADS


def ragged() -> tuple[Layout, Array]:
    """The layout of the ragged rows, and the positions in NumPy; padding stands where the last real token does."""
    real = real_tokens()
    positions = np.minimum(np.arange(max(LENGTHS))[None], np.array(LENGTHS)[:, None] - 1).astype(np.float64)
    return Layout.of(real.long(), real), positions


def seen(positions: Array, causal: bool) -> Any:
    """Every query sees the real keys, if `causal` those at its position or before."""
    visible = np.broadcast_to(array(real_tokens())[:, None, :] > 0, (3, max(LENGTHS), max(LENGTHS)))
    return visible & (positions[:, :, None] >= positions[:, None, :]) if causal else visible


def language_model(position: PositionConfig | None = None, mixer: Any = None) -> DecoderOnlyConfig:
    """Two layers of 12 heads, of which a test may change the position scheme or the attention."""
    block = BlockConfig(
        mixer or MultiHeadAttentionConfig(HEADS),
        ReluFeedForwardConfig(64),
        wiring=PreNormConfig(0.0),
        norm=LayerNormConfig(),
    )
    stack = StackConfig((block, block), position or NoPositionConfig(), LayerNormConfig(), dropout=0.0)
    return DecoderOnlyConfig(11, WIDTH, stack)


def in_segments(model: Any, x: Tensor, sizes: list[int]) -> Tensor:
    """The logits of decoding `x` segment by segment."""
    state = model.initial_state()
    return torch.cat([model.decode(part, state) for part in x.split(sizes, dim=1)], dim=1)
