"""Mamba, Mamba-2 and FalconMamba: published models are ours, and ours are published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import FalconMambaConfig, Mamba2Config, MambaConfig

from tests.interop.huggingface.published import (
    VOCAB,
    all_double,
    compare,
    published,
    ragged,
    round_trip,
    sees_padding_on_the_left,
)
from transformer import load
from transformer.enhancements.compose import replace_parts
from transformer.enhancements.normalization.non_parametric_rms_norm import NonParametricRMSNormConfig
from transformer.enhancements.normalization.rms_norm import RMSNormConfig
from transformer.enhancements.ssm.mamba import MambaConfig as MambaMixerConfig
from transformer.generation import generate
from transformer.interop import to_huggingface
from transformer.interop.huggingface import FAMILIES
from transformer.interop.huggingface.attributes import Attributes
from transformer.models import build, llama, mamba

SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2}
NO_END: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
CONFIGS: dict[str, Any] = {
    "mamba": MambaConfig(**SIZES, **NO_END),
    "mamba, odd": MambaConfig(
        **SIZES, **NO_END, state_size=5, time_step_rank=7, conv_kernel=3, use_conv_bias=False, expand=1,
        tie_word_embeddings=False, layer_norm_epsilon=1e-3,
    ),
    "mamba2": Mamba2Config(**SIZES, **NO_END, num_heads=12, head_dim=8, n_groups=3, state_size=10, chunk_size=16),
    "mamba2, tied": Mamba2Config(
        **SIZES, **NO_END, num_heads=3, head_dim=32, n_groups=1, state_size=7, chunk_size=32, conv_kernel=3,
        use_conv_bias=False, tie_word_embeddings=True, layer_norm_epsilon=1e-3,
    ),
    "falcon_mamba": FalconMambaConfig(
        **SIZES, **NO_END, state_size=5, time_step_rank=7, tie_word_embeddings=False, mixer_rms_eps=0.03,
    ),
}  # fmt: skip
BIASED = MambaConfig(**SIZES, **NO_END, use_bias=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_model_is_ours_and_ours_is_one(name: str, tmp_path: Path) -> None:
    theirs = published(CONFIGS[name], tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    compare(theirs, ours, 1e-5)
    round_trip(theirs, ours, tmp_path / "ours")


@pytest.mark.parametrize("name", CONFIGS)
def test_in_double_precision_the_two_are_one_function(name: str, tmp_path: Path) -> None:
    with all_double():
        theirs = published(CONFIGS[name], tmp_path, torch.float64)
        compare(theirs, load(tmp_path, dtype=torch.float64), 1e-11)


def test_with_biases_theirs_sees_padding_on_the_left(tmp_path: Path) -> None:
    """The convolution there reads the bias of the map before it where padding stands; ours reads nothing."""
    sees_padding_on_the_left(published(BIASED, tmp_path), load(tmp_path))


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba"])
def test_what_they_write_we_write(name: str, tmp_path: Path) -> None:
    """Greedily, from their cache and from our state."""
    theirs: Any = published(CONFIGS[name], tmp_path)
    prompt = torch.randint(VOCAB, (2, 11), generator=torch.Generator().manual_seed(4))
    expected = theirs.generate(
        prompt, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    assert torch.equal(generate(load(tmp_path), prompt, 12, temperature=0.0), expected)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba"])
@torch.no_grad()
def test_their_cache_and_our_state_give_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs: nn.Module = published(CONFIGS[name], tmp_path)
    ours = load(tmp_path)
    tokens, _ = ragged()
    first = theirs(tokens[:, :40], use_cache=True)
    state = ours.initial_state()
    found, expected = [ours.decode(tokens[:, :40], state)], [first.logits]
    for t in range(40, 50):
        step = theirs(tokens[:, t : t + 1], cache_params=first.cache_params, use_cache=True)
        expected.append(step.logits)
        found.append(ours.decode(tokens[:, t : t + 1], state))
    assert (torch.cat(found, 1) - torch.cat(expected, 1)).abs().max() <= 1e-5 * first.logits.abs().max()


def config_of(attributes: dict[str, Any]) -> Any:
    return FAMILIES[attributes["model_type"]].read(Attributes(attributes, "config.json"))


def test_the_published_attributes_are_read() -> None:
    """The config.json of state-spaces/mamba-130m-hf."""
    attributes = {
        "architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "d_inner": 1536, "d_model": 768,
        "eos_token_id": 0, "expand": 2, "fused_add_norm": True, "hidden_act": "silu", "hidden_size": 768,
        "initializer_range": 0.1, "intermediate_size": 1536, "layer_norm_epsilon": 1e-05, "model_type": "mamba",
        "n_layer": 24, "num_hidden_layers": 24, "pad_token_id": 0, "pad_vocab_size_multiple": 8,
        "rescale_prenorm_residual": False, "residual_in_fp32": True, "rms_norm": True, "ssm_cfg": {},
        "state_size": 16, "time_step_floor": 0.0001, "time_step_init_scheme": "random", "time_step_max": 0.1,
        "time_step_min": 0.001, "time_step_rank": 48, "time_step_scale": 1.0, "torch_dtype": "float32",
        "transformers_version": "4.39.0.dev0", "use_bias": False, "use_cache": True, "use_conv_bias": True,
        "vocab_size": 50280,
    }  # fmt: skip
    assert config_of(attributes) == mamba()


def test_the_published_attributes_of_falcon_mamba_are_read() -> None:
    """The config.json of tiiuae/falcon-mamba-7b, whose `expand` is not what `intermediate_size` says."""
    attributes = {
        "_name_or_path": "./", "architectures": ["FalconMambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4,
        "eos_token_id": 11, "expand": 16, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.1,
        "intermediate_size": 8192, "layer_norm_epsilon": 1e-05, "model_type": "falcon_mamba",
        "num_hidden_layers": 64, "pad_token_id": 11, "rescale_prenorm_residual": False, "residual_in_fp32": True,
        "state_size": 16, "tie_word_embeddings": False, "time_step_floor": 0.0001,
        "time_step_init_scheme": "random", "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 256,
        "time_step_scale": 1.0, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", "use_bias": False,
        "use_cache": True, "use_conv_bias": True, "vocab_size": 65024,
    }  # fmt: skip
    plain = mamba(65024, 4096, 64, tie_embeddings=False)
    inner = MambaMixerConfig(inner_norm=NonParametricRMSNormConfig(1e-6))
    assert config_of(attributes) == replace_parts(plain, MambaMixerConfig, lambda _: inner)
    assert FalconMambaConfig(**attributes).intermediate_size == 8192


def test_a_norm_of_another_kind_within_the_mixers_is_not_saved_as_falcon_mamba(tmp_path: Path) -> None:
    inner = MambaMixerConfig(inner_norm=RMSNormConfig())
    config = replace_parts(mamba(20, 32, 1), MambaMixerConfig, lambda _: inner)
    for family, reason in (("falcon_mamba", "no norms without a gain inside"), ("mamba", "norms inside")):
        with pytest.raises(ValueError, match=f"{family}: its mixers have {reason}"):
            to_huggingface(build(config), tmp_path, model_type=family)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"hidden_act": "gelu"}, r"has hidden_act 'gelu', and only 'silu' can be loaded$"),
        ({"model_type": "falcon_mamba", "hidden_act": "gelu"}, r"has hidden_act 'gelu', and only 'silu'"),
        ({"d_model": 40}, r"has d_model 40, and only 48 can be loaded$"),
        (
            {"model_type": "mamba2", "num_heads": 5},
            r"has num_heads 5 of head_dim 64 for an inner width of 96$",
        ),
        (
            {"model_type": "mamba2", "num_heads": 12, "head_dim": 8, "time_step_limit": [0.0, 1.0]},
            r"has time_step_limit \[0.0, 1.0\], and only",
        ),
    ],
)
def test_what_the_family_cannot_say_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of({"model_type": "mamba", **SIZES, **attributes})


@pytest.mark.parametrize(
    "config",
    [mamba(20, 32, 1), mamba(20, 32, 1, d_inner=64, dt_rank=2), llama(20, 16, 4, 1, n_kv_heads=4, d_ff=8)],
    ids=["null", "spelt out", "attention"],
)
def test_what_null_stands_for_may_be_spelt_out_or_not(config: Any, tmp_path: Path) -> None:
    """Either is saved, and loaded as the same model."""
    ours, tokens = build(config).eval(), torch.randint(20, (2, 9))
    to_huggingface(ours, tmp_path)
    assert torch.equal(load(tmp_path)(tokens), ours(tokens))
