"""T5: sizes as published, first weights, places of dropout, and what it has and has not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from transformer import T5
from transformer.base.sockets import Layout
from transformer.base.wiring import Dropout
from transformer.enhancements.architecture.output_dropout import OutputDropoutStack
from transformer.enhancements.position.split_sinusoids import SplitSinusoidalPosition
from transformer.enhancements.position.t5_bias import BidirectionalT5Bias, CausalT5Bias
from transformer.models import t5, transformer

SMALL: dict[str, Any] = {"vocab_size": 50, "d_model": 64, "n_heads": 3, "n_layers": 2, "d_head": 16}

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "t5-small": ({"d_model": 512, "n_heads": 8, "n_layers": 6}, 60_506_624),
    "t5-base": ({}, 222_903_552),
    "t5-11b": (
        {"d_model": 1024, "n_heads": 128, "n_layers": 24, "d_head": 128, "d_ff": 65536}, 11_307_321_344
    ),
    "t5-v1_1-small, flan-t5-small": (
        {"d_model": 512, "n_heads": 6, "n_layers": 8, "d_head": 64, "d_ff": 1024, "version": "1.1"}, 76_961_152
    ),
    "t5-v1_1-base, flan-t5-base": ({"version": "1.1"}, 247_577_856),
    "mt5-small": (
        {
            "vocab_size": 250112, "d_model": 512, "n_heads": 6, "n_layers": 8, "d_head": 64, "d_ff": 1024,
            "version": "1.1",
        },
        300_176_768,
    ),
}  # fmt: skip
"""How many weights the released checkpoints have."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_released_models(name: str) -> None:
    options, number = PUBLISHED[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in T5(**options).parameters()) == number


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_it_has(version: Any) -> None:
    model = T5(**SMALL, version=version)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert not [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert (
        type(model.encoder.position) is BidirectionalT5Bias and type(model.decoder.position) is CausalT5Bias
    )
    blocks: list[Any] = [*model.encoder.blocks, *model.decoder.blocks]
    crossed = [block.cross_attention.branch for block in model.decoder.blocks]  # type: ignore[union-attr]
    assert {a.scale for a in [*(block.mixer.branch for block in blocks), *crossed]} == {1.0}
    tied = model.lm_head.weight is model.embedding.weight
    assert tied == (version == "1.0") and model.embedding.multiplier == 1.0
    assert getattr(model.lm_head, "scale", 1.0) == (64**-0.5 if tied else 1.0)


def test_dropout_falls_where_it_was_published() -> None:
    """At a stack's input and output, on each branch, on attention's weights, and inside the feed-forward network."""
    for version in ("1.0", "1.1"):
        model: Any = T5(**SMALL, dropout=0.3, version=version)
        places = {
            name.removeprefix("encoder.").removeprefix("decoder.").replace("blocks.1", "blocks.0")
            for name, module in model.named_modules()
            if isinstance(module, Dropout)
        }
        block = "blocks.0"
        branches = {f"{block}.{part}.dropout" for part in ("mixer", "cross_attention", "feed_forward")}
        assert places == {"dropout", "output_dropout", f"{block}.feed_forward.branch.dropout"} | branches
        assert {m.p for m in model.modules() if isinstance(m, Dropout)} == {0.3}
        attentions = [m for m in model.modules() if hasattr(m, "q_proj")]
        assert len(attentions) == 6 and {m.dropout for m in attentions} == {0.3}


def test_a_stacks_output_is_dropped_after_the_norm() -> None:
    torch.manual_seed(0)
    model = T5(**SMALL, dropout=0.0)
    assert isinstance(model.encoder, OutputDropoutStack)
    model.encoder.output_dropout.p = 0.25
    source = torch.randint(50, (4, 60))
    dropped = model.encode(source).hidden
    whole = model.eval().encode(source).hidden
    gone = dropped == 0
    assert abs(gone.float().mean().item() - 0.25) < 0.01
    torch.testing.assert_close(dropped[~gone], whole[~gone] / 0.75, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_first_weights(version: Any) -> None:
    torch.manual_seed(0)
    model = T5(500, 96, 12, 2, 32, 250, version=version)
    expected = {
        "embedding.weight": 1.0,
        "position.table.weight": 96**-0.5,
        "q_proj.weight": (96 * 32) ** -0.5,
        "k_proj.weight": 96**-0.5,
        "v_proj.weight": 96**-0.5,
        "out_proj.weight": 384**-0.5,
        "up_proj.weight": 96**-0.5,
        "gate_proj.weight": 96**-0.5,
        "down_proj.weight": 250**-0.5,
        "lm_head.weight": 96**-0.5,
    }
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert (weight == 1).all()
            continue
        std = next(value for end, value in expected.items() if name.endswith(end))
        assert abs(weight.std().item() / std - 1) < 4 * weight.numel() ** -0.5, name
        assert abs(weight.mean().item()) < 5 * std * weight.numel() ** -0.5, name


def test_scaled_attention_keeps_its_usual_first_weights() -> None:
    from dataclasses import replace

    from transformer.enhancements.initialization import FanInConfig
    from transformer.models import build

    torch.manual_seed(0)
    model: Any = build(replace(transformer(50, 96, 6, 1), initialization=FanInConfig()))
    q = model.encoder.blocks[0].mixer.branch.q_proj.weight
    assert abs(q.std().item() / 96**-0.5 - 1) < 0.03


def test_logits_of_first_weights_have_about_unit_variance() -> None:
    torch.manual_seed(0)
    for version in ("1.0", "1.1"):
        model = T5(500, 128, 4, 3, version=version).eval()
        tokens = torch.randint(500, (2, 40))
        assert 0.7 < model(tokens, tokens).std().item() < 1.4


def test_d_head_must_be_said_where_heads_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"^d_model 512 cannot .* n_heads 6 equal heads; .* or give d_head$"):
        t5(100, 512, 6, 8)


def test_switches_work_on_it() -> None:
    tokens = torch.randint(50, (2, 6))
    for switch in ("use_rope", "use_swiglu", "use_gqa", "use_flash_attention", "use_sandwich_norm"):
        assert T5(**SMALL, **{switch: True})(tokens, tokens).isfinite().all()


@pytest.mark.parametrize("d_model", [6, 7])
def test_split_sinusoids_are_the_papers_in_another_order(d_model: int) -> None:
    position = SplitSinusoidalPosition(d_model, 70)
    x = position.embed(
        torch.zeros(1, 70, d_model, dtype=torch.float64), Layout.of(torch.zeros(1, 70, dtype=torch.long))
    )[0]
    half = -(-d_model // 2)
    for t in (0, 1, 33, 69):
        for j in range(d_model):
            i = j if j < half else j - half
            angle = torch.tensor(t / 10000 ** (2 * i / d_model), dtype=torch.float64)
            assert abs(x[t, j] - (angle.sin() if j < half else angle.cos())) < 1e-12
