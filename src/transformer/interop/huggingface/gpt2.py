"""GPT-2 (Radford et al. 2019): its maps are stored with the input axis first, and queries, keys and values as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.attention import MultiHeadAttentionConfig
from ...base.normalization import LayerNormConfig
from ...base.position import LearnedPositionConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PreNormConfig
from ...enhancements.feed_forward.gelu import GELUFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .family import Family, require
from .weights import Rule, linear, same, stacked, transposed

FORMS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf", "quick_gelu": "quick"}
"""The names of GELU's forms."""


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    d_model, n_layers = attributes.take("n_embd", int), attributes.take("n_layer", int)
    heads, dropout = attributes.take("n_head", int), attributes.take("attn_pdrop", float, 0.1)
    width = attributes.take("n_inner", int, 4 * d_model)
    name = attributes.take("activation_function", str, "gelu_new")
    if name not in FORMS:
        raise attributes.fault(f"has activation_function {name!r}, and only {', '.join(FORMS)} can be loaded")
    norm = LayerNormConfig(attributes.take("layer_norm_epsilon", float, 1e-5))
    residual, embedded = attributes.take("resid_pdrop", float, 0.1), attributes.take("embd_pdrop", float, 0.1)
    for switch in ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "reorder_and_upcast_attn"):
        attributes.only(switch, False)
    attributes.only("scale_attn_weights", True)
    for inert in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"):
        attributes.only(f"summary_{inert}", "cls_index", True, False, dropout, 0.1, 0.0)
    attributes.take("n_ctx", int, 0)
    block = BlockConfig(
        MultiHeadAttentionConfig(heads, dropout, bias=True),
        GELUFeedForwardConfig(width, form=FORMS[name]),  # type: ignore[arg-type]
        wiring=PreNormConfig(residual),
        norm=norm,
    )
    position = LearnedPositionConfig(attributes.take("n_positions", int))
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig((block,) * n_layers, position, norm, embedded),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, True),
        initialization=GPT2Config(),
    )
    attributes.finish()
    return config


def write(config: DecoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    stack, block = config.stack, config.stack.blocks[0]
    require(isinstance(stack.position, LearnedPositionConfig), "its positions are not learned")
    require(isinstance(block, BlockConfig), "its blocks are not attention and feed-forward")
    assert isinstance(block, BlockConfig) and isinstance(stack.position, LearnedPositionConfig)
    mixer, feed_forward, norm, wiring = block.mixer, block.feed_forward, block.norm, block.wiring
    require(isinstance(mixer, MultiHeadAttentionConfig), "its mixer is not the paper's attention")
    require(isinstance(feed_forward, GELUFeedForwardConfig), "its feed-forward network has not GELU")
    require(
        isinstance(norm, LayerNormConfig) and isinstance(wiring, PreNormConfig),
        "it is not pre-norm by LayerNorm",
    )
    assert isinstance(mixer, MultiHeadAttentionConfig) and isinstance(feed_forward, GELUFeedForwardConfig)
    assert isinstance(norm, LayerNormConfig) and isinstance(wiring, PreNormConfig)
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": len(stack.blocks),
        "n_head": mixer.n_heads,
        "n_inner": feed_forward.d_ff,
        "n_positions": stack.position.max_seq_len,
        "activation_function": {"tanh": "gelu_new", "erf": "gelu", "quick": "quick_gelu"}[feed_forward.form],
        "layer_norm_epsilon": norm.epsilon,
        "attn_pdrop": mixer.dropout,
        "resid_pdrop": wiring.dropout,
        "embd_pdrop": stack.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [
        same("transformer.wte.weight", "embedding.weight"),
        same("transformer.wpe.weight", "stack.position.table.weight"),
    ]
    for layer in range(len(config.stack.blocks)):
        theirs, ours = f"transformer.h.{layer}", f"stack.blocks.{layer}"
        projections = [f"{ours}.mixer.branch.{name}_proj" for name in "qkv"]
        weights, biases = ([f"{path}.{kind}" for path in projections] for kind in ("weight", "bias"))
        sizes, fused = (config.d_model,) * 3, f"{theirs}.attn.c_attn"
        whole = stacked(f"{fused}.weight", weights, sizes)
        found.append(Rule(whole.theirs, whole.ours, _turned_first(whole.read), _turned_last(whole.write)))
        found.append(stacked(f"{fused}.bias", biases, sizes))
        for name, path in (
            ("attn.c_proj", "mixer.branch.out_proj"),
            ("mlp.c_fc", "feed_forward.branch.up_proj"),
            ("mlp.c_proj", "feed_forward.branch.down_proj"),
        ):
            found.append(transposed(f"{theirs}.{name}.weight", f"{ours}.{path}.weight"))
            found.append(same(f"{theirs}.{name}.bias", f"{ours}.{path}.bias"))
        found += linear(f"{theirs}.ln_1", f"{ours}.mixer.norm", bias=True)
        found += linear(f"{theirs}.ln_2", f"{ours}.feed_forward.norm", bias=True)
    found += linear("transformer.ln_f", "stack.norm", bias=True)
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def _turned_first(read: Any) -> Any:
    return lambda tensors: read([tensor.T for tensor in tensors])


def _turned_last(write: Any) -> Any:
    return lambda tensors: [tensor.T for tensor in write(tensors)]


FAMILIES = (
    Family(
        "gpt2", "GPT2LMHeadModel", read, write, rules, "transformer.", (".attn.bias", ".attn.masked_bias")
    ),
)
