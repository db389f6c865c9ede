"""Models compile without a graph break, in any choice of execution, to the same values and gradients.

The package is imported by its other spelling here, since the checks of shapes that tests put into the usual one
are Python that a compiler cannot follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.transformer.base import AuxiliaryLosses
from src.transformer.base.attention import (
    CrossAttentionConfig,
    MultiHeadAttentionConfig,
    scaled_dot_product_attention,
)
from src.transformer.base.feed_forward import ReluFeedForwardConfig
from src.transformer.base.position import NoPositionConfig
from src.transformer.base.sockets import (
    Execution,
    FeedForwardConfig,
    MixerConfig,
    NormConfig,
    Position,
    PositionConfig,
    WiringConfig,
)
from src.transformer.base.stack import BlockConfig, StackConfig
from src.transformer.base.transformer import transformer
from src.transformer.enhancements import (
    CATALOG,
    enhance,
    gelu,
    naive_attention,
    pre_norm,
    resi_dual,
    rms_norm,
    rope,
    sdpa_attention,
    transformer_xl,
)
from src.transformer.enhancements.architecture.parallel import ParallelConfig
from src.transformer.models import DecoderOnlyConfig, build, gpt
from tests.catalog import SMALL as FIELDS

SMALL = {"vocab_size": 11, "d_model": 12, "n_heads": 3, "n_layers": 2, "d_ff": 20, "max_seq_len": 16}
CONFIGS: dict[str, Any] = {
    "gpt": gpt(**SMALL),
    "modern_gpt": enhance(gpt(**SMALL), rope(), rms_norm(), gelu("erf")),
    "transformer": transformer(**SMALL),
    "dual_gpt": enhance(gpt(**SMALL), resi_dual()),
    "modern_transformer": enhance(transformer(**SMALL), pre_norm(), rms_norm(), rope()),
    "transformer_xl_gpt": enhance(gpt(**SMALL), transformer_xl(5)),
}
EXECUTIONS = {
    f"{kernel.__name__}-{'checkpointed' if checkpoint else 'stored'}": Execution(kernel, checkpoint)
    for kernel, checkpoint in itertools.product((scaled_dot_product_attention, sdpa_attention), (False, True))
}
FAST = [("modern_gpt", name) for name in EXECUTIONS] + [
    ("gpt", "sdpa_attention-checkpointed"),
    ("dual_gpt", "sdpa_attention-checkpointed"),
    ("transformer", "sdpa_attention-stored"),
    ("transformer_xl_gpt", "sdpa_attention-checkpointed"),
    ("modern_transformer", "scaled_dot_product_attention-checkpointed"),
]
EVERY = list(itertools.product(CONFIGS, EXECUTIONS))
SLOW = [pytest.param(*both, marks=pytest.mark.slow) for both in EVERY if both not in FAST]


def loss_and_gradients(call: Callable[..., Tensor], model: torch.nn.Module, inputs: tuple) -> list[Tensor]:
    auxiliary = AuxiliaryLosses()
    loss = call(*inputs, auxiliary=auxiliary).square().mean() + auxiliary.total()
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("name", "execution"), FAST + SLOW)
def test_a_model_compiles_whole(name: str, execution: str) -> None:
    torch._dynamo.reset()
    model = build(CONFIGS[name], EXECUTIONS[execution]).double().eval()
    x, real = torch.randint(11, (2, 8)), torch.arange(8) < torch.tensor([[8], [5]])
    inputs = (x, real) if "gpt" in name else (x, x[:, :6], real)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    got = loss_and_gradients(compiled, model, inputs)
    for actual, expected in zip(got, loss_and_gradients(model, model, inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_a_model_compiles_with_dropout() -> None:
    torch._dynamo.reset()
    model = build(CONFIGS["modern_gpt"], EXECUTIONS["sdpa_attention-checkpointed"]).train()
    loss = torch.compile(model, fullgraph=True, backend="eager")(torch.randint(11, (2, 8))).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


PLAIN = BlockConfig(MultiHeadAttentionConfig(3), ReluFeedForwardConfig(20))
SOCKETS: dict[str, Any] = {
    "mixer": MixerConfig,
    "feed_forward": FeedForwardConfig,
    "norm": NormConfig,
    "wiring": WiringConfig,
    "position": PositionConfig,
}


def blocks_with(socket: str) -> tuple[BlockConfig, ...]:
    """A block for each part of the catalog that fits the socket; one stack then compiles them all."""
    blocks = []
    for kind, part in CATALOG.items():
        if (
            not issubclass(part, SOCKETS[socket])
            or issubclass(part, CrossAttentionConfig)
            or getattr(part, "both_ways_only", False)
            or kind.startswith("resi_dual")
        ):
            continue
        values = {field.name: FIELDS[field.name] for field in fields(part) if field.name in FIELDS}
        made = ParallelConfig(PLAIN.mixer, PLAIN.feed_forward) if part is ParallelConfig else part(**values)
        if socket == "position" and type(made.build(12)).embed is not Position.embed:
            continue  # those belong to a stack: the models above have them
        beside = "feed_forward" if socket in ("mixer", "position") else "mixer"  # left out, to save time
        blocks.append(replace(PLAIN, **{socket: made, beside: None}))
    assert len(blocks) >= 3
    return tuple(blocks)


@pytest.mark.parametrize("socket", SOCKETS)
def test_every_part_compiles_whole(socket: str) -> None:
    torch._dynamo.reset()
    config = DecoderOnlyConfig(11, 12, StackConfig(blocks_with(socket), NoPositionConfig(), dropout=0.0))
    model = build(config, Execution(naive_attention)).double().eval()
    inputs = (torch.randint(11, (2, 7)), torch.arange(7) < torch.tensor([[7], [5]]))
    got = loss_and_gradients(torch.compile(model, fullgraph=True, backend="eager"), model, inputs)
    for actual, expected in zip(got, loss_and_gradients(model, model, inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
