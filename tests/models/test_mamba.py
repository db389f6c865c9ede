"""Mamba, Mamba-2 and hybrids at their published sizes, in a run's configuration, and writing with their states."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from transformer import Mamba
from transformer.enhancements import CATALOG, SCANS
from transformer.generation import generate
from transformer.models import DecoderOnly, build, hybrid, jamba, mamba, mamba2, samba
from transformer.models.hybrid import MIXERS
from transformer.run.config import ConfigError, decode_run

SMALL: dict[str, Any] = {"vocab_size": 20, "d_model": 32, "n_layers": 2}


def size(config: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters())


def test_the_published_models_have_their_published_sizes() -> None:
    """state-spaces/mamba-130m, 370m and 2.8b, mamba2-130m, and ai21labs/Jamba-v0.1."""
    assert size(mamba()) == 129_135_360
    assert size(mamba(d_model=1024, n_layers=48)) == 371_516_416
    assert size(mamba(d_model=2560, n_layers=64)) == 2_768_345_600
    assert size(mamba2()) == 128_989_632
    assert size(jamba()) == 51_570_323_328


def test_a_block_is_a_mixer_and_nothing_else() -> None:
    model = Mamba(**SMALL)
    assert {name.split(".")[3] for name in model.state_dict() if "blocks" in name} == {"mixer"}
    assert model.config == mamba(**SMALL)
    assert Mamba(**SMALL, use_gradient_checkpointing=True).execution.checkpoint
    assert list(model(torch.randint(20, (2, 5))).shape) == [2, 5, 20]


def test_a_hybrid_without_feed_forward_networks_and_with_first_weights_as_mamba_is_mamba() -> None:
    sizes = {"layers": ("mamba",), "d_ff": 0, "tie_embeddings": True}
    assert hybrid(20, 32, 4, 2, **sizes, initialization="mamba") == mamba(**SMALL)
    assert all(block.feed_forward is not None for block in hybrid(20, 32, 4, 2).stack.blocks)


def test_layers_of_a_hybrid_repeat() -> None:
    config = hybrid(20, 32, 4, 5, ("mamba", "window", "mamba2"), window=7, rope_base=500.0)
    kinds = [block.mixer.kind for block in config.stack.blocks]  # type: ignore[attr-defined]
    assert kinds == ["mamba", "sliding_window_attention", "mamba2", "mamba", "sliding_window_attention"]
    counts = Counter(block.mixer.kind for block in jamba().stack.blocks)  # type: ignore[attr-defined]
    assert counts == {"mamba": 28, "grouped_query_attention": 4}
    experts = [block.feed_forward.kind for block in jamba().stack.blocks]  # type: ignore[attr-defined]
    assert experts == ["gated_feed_forward", "mixture_of_experts"] * 16
    assert samba().stack.blocks[1].mixer.window == 2048  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"layers has 'rwkv', which is no mixer of a hybrid; there are attention, window"
    ):
        hybrid(layers=("rwkv",))


def test_every_name_of_a_mixer_is_one_of_the_catalog_and_works_beside_another() -> None:
    config = hybrid(20, 32, 4, len(MIXERS), tuple(MIXERS), d_ff=24, window=3)
    assert all(block.mixer.kind in CATALOG for block in config.stack.blocks)  # type: ignore[attr-defined]
    model, tokens = DecoderOnly(config).double().eval(), torch.randint(20, (2, 12))
    state, whole = model.initial_state(), model(tokens)
    steps = torch.cat([model.decode(piece, state) for piece in tokens.split([5, 1, 6], 1)], dim=1)
    assert (steps - whole).abs().max() <= 1e-11


@pytest.mark.parametrize(
    "config",
    [mamba(**SMALL), mamba2(**SMALL), hybrid(20, 32, 4, 2)],
    ids=lambda c: c.stack.blocks[0].mixer.kind,
)
def test_what_is_written_is_what_the_whole_model_would_write(config: Any) -> None:
    """Ragged prompts, greedily: each as alone, and as without a state."""
    model, prompts = DecoderOnly(config).double().eval(), torch.randint(3, 20, (2, 6))
    real = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    written = generate(model, prompts, max_new_tokens=8, temperature=0.0, attention_mask=real)
    for row, here in zip(written, real, strict=True):
        alone = row[:6][here][None]
        for _ in range(8):
            alone = torch.cat([alone, model(alone)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(alone[0, int(here.sum()) :], row[6:])


def test_a_run_may_name_these_families_and_a_form_of_the_scan() -> None:
    rest = {"data": {"kind": "text", "path": "nowhere"}, "schedule": {"kind": "constant"}}
    model = {"family": "hybrid", "d_model": 32, "n_heads": 4, "n_layers": 2, "layers": ["mamba", "retention"]}
    config = decode_run({"model": model, **rest, "execution": {"scan": "associative"}}, {})
    architecture, execution = config.model.architecture(20)
    assert [block.mixer.kind for block in architecture.stack.blocks] == ["mamba", "retention"]  # type: ignore[attr-defined]
    assert config.execution.apply(execution).scan is SCANS["associative"]
    plain = decode_run({"model": {"family": "mamba", "d_state": 4}, **rest}, {})
    assert plain.execution.apply(execution).scan is None
    with pytest.raises(
        ConfigError, match=r"^model .*layers has 'mambo', which is no mixer of a hybrid; did you mean 'mamba'"
    ):
        decode_run({"model": {**model, "layers": ["mambo"]}, **rest}, {})
