"""LLaMA as an equation over GPT, and at its published sizes."""

from __future__ import annotations

from typing import Any

import torch

from transformer.enhancements import (
    enhance,
    grouped_query,
    no_bias,
    rms_norm,
    rope,
    swiglu,
    untied_embeddings,
)
from transformer.enhancements.feed_forward.glu import llama_width
from transformer.models import LLaMA, build, gpt, llama


def test_the_history_of_the_family_is_an_equation() -> None:
    dims: dict[str, Any] = {
        "vocab_size": 90,
        "d_model": 96,
        "n_heads": 6,
        "n_layers": 3,
        "max_seq_len": 77,
        "dropout": 0.0,
    }
    history = [
        rope(max_seq_len=77),
        rms_norm(1e-5),
        swiglu(d_ff=llama_width(96)),
        no_bias(),
        grouped_query(2),
        untied_embeddings(),
    ]
    assert enhance(gpt(**dims), *history) == llama(**dims, n_kv_heads=2)
    assert enhance(gpt(**dims), *history[:-1]) != llama(**dims, n_kv_heads=2)


def test_the_published_models_have_their_published_sizes() -> None:
    with torch.device("meta"):
        first, third = build(llama()), LLaMA(128256, 4096, 32, 32, 8, 14336, max_seq_len=8192, rope_base=5e5)
    assert sum(p.numel() for p in first.parameters()) == 6_738_415_616
    assert sum(p.numel() for p in third.parameters()) == 8_030_261_248
    assert llama_width(4096) == 11008
