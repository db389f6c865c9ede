"""MPT (MosaicML 2023): ALiBi, and no bias anywhere, in the norms neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.attention import MultiHeadAttentionConfig
from ...base.stack import StackConfig
from ...enhancements.feed_forward.gelu import GELUFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.normalization.bias_free_layer_norm import BiasFreeLayerNormConfig
from ...enhancements.position.alibi import ALiBiConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import Parts, parts_of, paths_of
from .family import Family, require
from .weights import Rule, same, stacked


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("d_model", int), attributes.take("n_layers", int)
    n_heads = attributes.take("n_heads", int)
    norm = BiasFreeLayerNormConfig(attributes.take("layer_norm_epsilon", float, 1e-5))
    dropout = _read_attention(attributes)
    block = Parts(
        MultiHeadAttentionConfig(n_heads, dropout),
        GELUFeedForwardConfig(4 * d_model, bias=False),
        norm,
        dropout,  # of attention, which the published code takes for both branches
    ).block()
    attributes.only("expansion_ratio", 4)
    attributes.only("no_bias", True)
    attributes.only("norm_type", "low_precision_layernorm", "layernorm")
    attributes.only("logit_scale")
    attributes.only("ffn_config")
    for name, kind in (
        ("learned_pos_emb", bool),  # ALiBi stands in their place
        ("max_seq_len", int),  # of training; ALiBi has no longest
        ("resid_pdrop", float),  # read nowhere by the published code
        ("emb_pdrop", float),
        ("embedding_fraction", float),
        ("init_device", str),
        ("verbose", int),
        ("tokenizer_name", str),
        ("init_config", dict),  # of the first weights
    ):
        attributes.take(name, kind, None)
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, ALiBiConfig(n_heads), norm, 0.0),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        initialization=GPT2Config(),
    )
    attributes.finish()
    return config


def _read_attention(attributes: Attributes) -> float:
    """Refuse any attention but the paper's under ALiBi; return the dropout of its weights."""
    section = attributes.section("attn_config")
    if section is None:
        return 0.0
    section.only("attn_type", "multihead_attention")
    section.only("alibi", True)
    section.only("alibi_bias_max", 8)
    for name in ("prefix_lm", "qk_ln", "attn_uses_sequence_id"):
        section.only(name, False)
    for name in ("clip_qkv", "softmax_scale"):
        section.only(name)
    section.take("attn_impl", str, "torch")  # how to compute it
    dropout: float = section.take("attn_pdrop", float, 0.0)
    section.finish()
    return dropout


def write(config: Any) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack = config.stack
    parts: Any = parts_of(stack.blocks[0])
    require(isinstance(parts.norm, BiasFreeLayerNormConfig), "its norm is not LayerNorm without bias")
    require(isinstance(stack.position, ALiBiConfig), "its positions are not ALiBi")
    require(parts.mixer.dropout == 0, "it has dropout, for which the published config has whole numbers only")
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "n_layers": len(stack.blocks),
        "n_heads": parts.mixer.n_heads,
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_pdrop": 0},
        "layer_norm_epsilon": parts.norm.epsilon,
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("transformer.wte.weight", "embedding.weight")]
    for layer in range(len(config.stack.blocks)):
        ours, theirs = paths_of(layer, "sequential"), f"transformer.blocks.{layer}"
        three = [f"{ours.mixer}.{name}_proj.weight" for name in "qkv"]
        found.append(stacked(f"{theirs}.attn.Wqkv.weight", three, (config.d_model,) * 3))
        for name, path in (
            ("attn.out_proj", f"{ours.mixer}.out_proj"),
            ("ffn.up_proj", f"{ours.feed_forward}.up_proj"),
            ("ffn.down_proj", f"{ours.feed_forward}.down_proj"),
            ("norm_1", ours.mixer_norm),
            ("norm_2", ours.feed_forward_norm),
        ):
            found.append(same(f"{theirs}.{name}.weight", f"{path}.weight"))
    found.append(same("transformer.norm_f.weight", "stack.norm.weight"))
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


FAMILIES = (Family("mpt", "MptForCausalLM", read, write, rules, "transformer."),)
