"""Jamba: writing from its cache, padding, the published attributes, and what is saved as one.

That its logits and gradients are ours is tested with the other mixtures of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, JambaConfig

from tests.interop.huggingface.published import (
    VOCAB,
    published,
    ragged,
    sees_padding_on_the_left,
)
from transformer import load
from transformer.generation import generate
from transformer.interop import to_huggingface
from transformer.interop.huggingface import FAMILIES
from transformer.interop.huggingface.attributes import Attributes
from transformer.models import DecoderOnlyConfig, build, hybrid, jamba

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 20, "num_attention_heads": 6,
    "num_key_value_heads": 2, "num_experts": 4, "attn_layer_period": 3, "attn_layer_offset": 1,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
PLAIN, BIASED = JambaConfig(**SIZES), JambaConfig(**SIZES, mamba_proj_bias=True)


@torch.no_grad()
def test_their_cache_and_our_state_write_the_same(tmp_path: Path) -> None:
    """Greedily, and logit by logit."""
    theirs = published(PLAIN, tmp_path)
    ours, tokens = load(tmp_path), ragged()[0]
    prompt = tokens[:2, :11]
    expected = theirs.generate(
        prompt, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    assert torch.equal(generate(ours, prompt, 12, temperature=0.0), expected)
    first, state = theirs(tokens[:, :70], use_cache=True), ours.initial_state()
    found, logits = [ours.decode(tokens[:, :70], state)], [first.logits]
    for t in range(70, 80):
        step = theirs(tokens[:, t : t + 1], past_key_values=first.past_key_values, use_cache=True)
        logits.append(step.logits)
        found.append(ours.decode(tokens[:, t : t + 1], state))
    assert (torch.cat(found, 1) - torch.cat(logits, 1)).abs().max() <= 1e-5 * first.logits.abs().max()


def test_with_biases_theirs_sees_padding_on_the_left(tmp_path: Path) -> None:
    """The convolution there reads the bias of the map before it where padding stands; ours reads nothing."""
    sees_padding_on_the_left(published(BIASED, tmp_path), load(tmp_path))


def test_the_norms_within_the_mixer_keep_their_names(tmp_path: Path) -> None:
    """No output tells those of B and C apart: y is a sum of their products."""
    theirs, ours = published(PLAIN, tmp_path).model.layers[0].mamba, load(tmp_path)
    mixer: Any = ours.get_submodule("stack.blocks.0.mixer.branch")
    assert torch.equal(mixer.B_norm.weight, theirs.b_layernorm.weight)
    assert torch.equal(mixer.C_norm.weight, theirs.c_layernorm.weight)


RELEASED = {
    "architectures": ["JambaForCausalLM"], "attention_dropout": 0.0, "attn_layer_offset": 4, "attn_layer_period": 8,
    "auto_map": {"AutoConfig": "configuration_jamba.JambaConfig"}, "bos_token_id": 1,
    "calc_logits_for_entire_prompt": False, "eos_token_id": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_dt_rank": 256, "mamba_expand": 2,
    "mamba_inner_layernorms": True, "mamba_proj_bias": False, "model_type": "jamba", "n_ctx": 262144,
    "num_attention_heads": 32, "num_experts": 16, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "output_router_logits": False, "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0", "use_cache": True, "use_mamba_kernels": True, "vocab_size": 65536,
}  # fmt: skip
"""The config.json of ai21labs/Jamba-v0.1."""


def test_the_published_attributes_are_our_jamba_and_ours_are_them() -> None:
    family = FAMILIES["jamba"]
    assert family.read(Attributes(RELEASED, "config.json")) == jamba()
    written = family.write(jamba())
    assert {name: RELEASED[name] for name in written} == written


def small(**settings: Any) -> DecoderOnlyConfig:
    sizes = {"n_heads": 4, "n_kv_heads": 2, "n_layers": 6, "d_ff": 20, "n_experts": 3} | settings
    return jamba(VOCAB, 32, **sizes)


def test_our_jamba_is_saved_as_one(tmp_path: Path) -> None:
    """With the widths of its mixers left at null, and its own first weights."""
    ours = build(small()).eval()
    to_huggingface(ours, tmp_path)
    theirs, tokens = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager"), ragged()[0]
    assert load(tmp_path).config == ours.config
    with torch.no_grad():
        assert (theirs(tokens).logits - ours(tokens)).abs().max() <= 1e-5


def relaid(order: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> DecoderOnlyConfig:
    config = small()
    return replace(config, stack=replace(config.stack, blocks=order(config.stack.blocks)))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (small(n_layers=4), "jamba: it has no layer of attention by grouped heads"),
        (hybrid(20, 32, 4, 2, ("attention",)), "jamba: it has no layer of Mamba"),
        (
            relaid(lambda b: (b[4], b[4], b[0], b[4])),
            "jamba: its layers of one kind do not stand at equal dist",
        ),
        (hybrid(20, 32, 4, 2, rope_base=1e4), "jamba: it has parts that the family has not"),
        (hybrid(20, 32, 4, 2, ("mamba", "window")), "jamba: it has parts that the family has not"),
        (hybrid(20, 32, 4, 2), "jamba: it has parts that the family has not"),  # no norms inside
    ],
)
def test_what_is_no_jamba_is_not_saved_as_one(config: DecoderOnlyConfig, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        to_huggingface(build(config), tmp_path / "model", model_type="jamba")
