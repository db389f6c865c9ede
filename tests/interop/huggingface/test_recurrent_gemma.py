"""RecurrentGemma: published models are ours, and ours are published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import RecurrentGemmaConfig

from tests.interop.huggingface.published import VOCAB, all_double, compare, published, ragged, round_trip
from transformer import load
from transformer.generation import generate
from transformer.interop import to_huggingface
from transformer.interop.huggingface import FAMILIES
from transformer.interop.huggingface.attributes import Attributes
from transformer.models import build, hybrid, recurrent_gemma

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 1, "attention_window_size": 16, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "griffin": RecurrentGemmaConfig(**SIZES),
    "odd": RecurrentGemmaConfig(
        **{**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}, lru_width=40,
        conv1d_width=3, attention_bias=True, tie_word_embeddings=False, logits_soft_cap=2.0, rms_norm_eps=1e-3,
        block_types=["attention", "recurrent"], rope_parameters={"rope_type": "default", "rope_theta": 500.0,
        "partial_rotary_factor": 1.0},
    ),
}  # fmt: skip
each_name = pytest.mark.parametrize("name", CONFIGS)


@each_name
def test_a_published_model_is_ours_and_ours_is_one(name: str, tmp_path: Path) -> None:
    """With padding on the right: on the left, the convolution there reads what stands before the text."""
    theirs = published(CONFIGS[name], tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    compare(theirs, ours, 1e-5, sides="right")
    round_trip(theirs, ours, tmp_path / "ours")


@each_name
def test_in_double_precision_the_two_are_one_function(name: str, tmp_path: Path) -> None:
    with all_double():
        theirs = published(CONFIGS[name], tmp_path, torch.float64)
        compare(theirs, load(tmp_path, dtype=torch.float64), 1e-11, sides="right")


@torch.no_grad()
def test_padding_on_the_left_changes_nothing_of_ours(tmp_path: Path) -> None:
    theirs = published(CONFIGS["griffin"], tmp_path)
    ours = load(tmp_path)
    tokens, mask = ragged()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alone = theirs(tokens[1:2, 23:]).logits[0]
    assert (ours(tokens, mask)[1, 23:] - alone).abs().max() <= 1e-5 * alone.abs().max()
    padded = theirs(tokens, attention_mask=mask, position_ids=positions).logits[1, 23:]
    assert (padded - alone).abs().max() > 0.01


@each_name
@torch.no_grad()
def test_what_they_write_we_write(name: str, tmp_path: Path) -> None:
    """Greedily, past the window, from their cache and from our state."""
    theirs: Any = published(CONFIGS[name], tmp_path)
    ours = load(tmp_path)
    prompt = torch.randint(VOCAB, (2, 11), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(prompt)
    expected = theirs.generate(prompt, max_new_tokens=24, do_sample=False, attention_mask=mask)
    assert torch.equal(generate(ours, prompt, 24, temperature=0.0), expected)
    state = ours.initial_state()
    steps = torch.cat([ours.decode(piece, state) for piece in expected.split([20, 1, 1, 13], 1)], dim=1)
    whole = theirs(expected).logits
    assert (steps - whole).abs().max() <= 1e-5 * whole.abs().max()


def config_of(attributes: dict[str, Any]) -> Any:
    return FAMILIES["recurrent_gemma"].read(
        Attributes({"model_type": "recurrent_gemma", **attributes}, "config.json")
    )


RECURRENTGEMMA_2B = {
    "architectures": ["RecurrentGemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attention_window_size": 2048, "block_types": ["recurrent", "recurrent", "attention"], "bos_token_id": 2,
    "conv1d_width": 4, "embeddings_scale_by_sqrt_dim": True, "eos_token_id": 1,
    "final_w_init_variance_scale": 0.07692307692307693, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560, "intermediate_size": 15360, "logits_soft_cap": 30.0, "lru_width": 2560,
    "num_attention_heads": 10, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0", "use_cache": True, "vocab_size": 256000, "w_init_variance_scale": 0.01,
}  # fmt: skip


def test_the_published_attributes_are_the_defaults() -> None:
    """The config.json of google/recurrentgemma-2b."""
    config = config_of(RECURRENTGEMMA_2B)
    assert config == recurrent_gemma()
    kinds = [block.mixer.kind for block in config.stack.blocks]
    assert kinds == (["rg_lru", "rg_lru", "sliding_window_attention"] * 9)[:26]
    assert config.embedding.multiplier == 50.5  # √2560 = 50.596… in bfloat16
    needed = ("hidden_size", "intermediate_size", "vocab_size")
    bare = {key: value for key, value in RECURRENTGEMMA_2B.items() if key.startswith("num_") or key in needed}
    assert config_of(bare) == config
    with torch.device("meta"):
        assert sum(p.numel() for p in build(config).parameters()) == 2_682_862_080


def test_a_model_of_recurrences_alone_is_saved_too(tmp_path: Path) -> None:
    model = build(recurrent_gemma(VOCAB, 24, 3, 2, None, 20, 30, layers=("rg_lru",)))
    assert load(to_huggingface(model, tmp_path)).config == model.config


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"hidden_activation": "gelu"}, r"has hidden_activation 'gelu', and only 'gelu_pytorch_tanh' can be"),
        ({"embeddings_scale_by_sqrt_dim": False}, r"has embeddings_scale_by_sqrt_dim False, and only True"),
        ({"block_types": ["recurrent", "window"]}, r"has block_types that are not a list of recurrent and"),
        ({"intermediate_size": 15}, r"has intermediate_size 15, which is not twice a width$"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"has scaled rotary positions, and only those"),
        ({"surprise": 1}, r"has the attribute 'surprise', which is not known for a model of type"),
    ],
)
def test_what_the_family_cannot_say_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of({**RECURRENTGEMMA_2B, **attributes})


def test_what_of_ours_the_family_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layers has 'mamba', and RecurrentGemma has rg_lru and window"):
        recurrent_gemma(layers=("mamba",))
    model: nn.Module = build(hybrid(VOCAB, 24, 3, 2, ("rg_lru", "window")))
    with pytest.raises(ValueError, match=r"recurrent_gemma: its norm is not RMSNorm with the gain 1 \+ g"):
        to_huggingface(model, tmp_path, model_type="recurrent_gemma")  # type: ignore[arg-type]
