"""BART (arXiv 1910.13461): the 2017 encoder-decoder with GELU, biases, learned positions and normed embeddings.

Its tables of positions begin with two rows that no token uses, which are not kept and are written as zeros. The map to
logits is the embedding's own matrix with a bias, `final_logits_bias`, which is no trained weight in `transformers`. A
model whose embeddings are not all one matrix is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch.nn import functional as F

from ...base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from ...base.embedding import EmbeddingConfig
from ...base.feed_forward import PlainFeedForwardConfig
from ...base.normalization import LayerNormConfig
from ...base.position import LearnedPositionConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.transformer import EncoderDecoderConfig
from ...base.wiring import PostNormConfig
from ...enhancements.architecture.bert_input import NormedInputStackConfig
from ...enhancements.feed_forward.silu import SiLUFeedForwardConfig
from ...enhancements.initialization import TruncatedNormalConfig
from ...models import HeadConfig
from .attributes import Attributes
from .blocks import only_generation, read_feed_forward, write_feed_forward
from .family import Family, require
from .weights import Rule, linear, reordered, same

UNUSED = 2
"""Rows of their tables of positions that no token uses."""
SIDES = ("encoder", "decoder")


def read(attributes: Attributes) -> EncoderDecoderConfig:
    """Return the config that the attributes describe."""
    attributes.only("normalize_embedding", True)
    attributes.only("static_position_embeddings", False)
    attributes.only("extra_pos_embeddings", UNUSED)
    position = LearnedPositionConfig(attributes.take("max_position_embeddings", int, 1024))
    dropout = attributes.take("dropout", float, 0.1)
    stacks = [
        NormedInputStackConfig(blocks, position, dropout=dropout)
        for blocks in read_blocks(attributes, dropout)
    ]
    return read_model(attributes, *stacks)


def read_blocks(attributes: Attributes, dropout: float) -> list[tuple[BlockConfig, ...]]:
    """Return the blocks of the encoder and of the decoder."""
    shared = {name: attributes.take(name, float, 0.0) for name in ("attention_dropout", "activation_dropout")}
    plain = _read_feed_forward(attributes)
    wiring = PostNormConfig(dropout)
    found = []
    for side in SIDES:
        heads, d_ff = (attributes.take(f"{side}_{name}", int) for name in ("attention_heads", "ffn_dim"))
        feed_forward = replace(plain, d_ff=d_ff, dropout=shared["activation_dropout"])
        crossed = (
            CrossAttentionConfig(heads, shared["attention_dropout"], True) if side == "decoder" else None
        )
        mixer = MultiHeadAttentionConfig(heads, shared["attention_dropout"], True)
        block = BlockConfig(mixer, feed_forward, crossed, wiring, LayerNormConfig())
        found.append((block,) * attributes.take(f"{side}_layers", int))
    attributes.only("num_hidden_layers", len(found[0]))
    return found


def _read_feed_forward(attributes: Attributes) -> PlainFeedForwardConfig:
    """Return a plain network of some width with the non-linearity that the attributes say."""
    if attributes.takes("activation_function", "swish", "silu"):
        return SiLUFeedForwardConfig()
    return read_feed_forward(attributes, "activation_function", "gelu", 1)


def read_model(attributes: Attributes, encoder: StackConfig, decoder: StackConfig) -> EncoderDecoderConfig:
    """Return the model that two stacks make up, and finish the attributes."""
    for name in ("normalize_before", "add_final_layer_norm", "is_decoder"):
        attributes.only(name, False)
    attributes.only("tie_word_embeddings", True)
    for name in (
        "classifier_dropout",
        "classif_dropout",
        "init_std",
        "encoder_layerdrop",
        "decoder_layerdrop",
    ):
        attributes.take(name, float, None)  # of training, and of another task
    attributes.take("add_bias_logits", bool, None)  # the bias is there in any case
    attributes.take("_num_labels", int, None)
    only_generation(attributes)
    config = EncoderDecoderConfig(
        attributes.take("vocab_size", int),
        attributes.take("d_model", int),
        encoder,
        decoder,
        EmbeddingConfig(scaled=attributes.take("scale_embedding", bool, False)),
        initialization=TruncatedNormalConfig(),
        lm_head=HeadConfig(bias=True),
    )
    attributes.finish()
    return config


def complete(config: EncoderDecoderConfig, names: frozenset[str]) -> EncoderDecoderConfig:
    """Return the config with a bias in the map to logits if its tensors have one."""
    return replace(config, lm_head=HeadConfig(bias="final_logits_bias" in names))


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    require(isinstance(config.encoder, NormedInputStackConfig), "its embeddings are not normalized")
    require(isinstance(config.encoder.position, LearnedPositionConfig), "its positions are not learned")
    return write_model(config)


def write_model(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Return the attributes that BART and Marian share."""
    position: Any = config.encoder.position
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "max_position_embeddings": position.max_seq_len,
        "scale_embedding": config.embedding.scaled,
        "dropout": config.encoder.dropout,
    }
    for side in SIDES:
        stack = getattr(config, side)
        block: Any = stack.blocks[0]
        require(isinstance(block.wiring, PostNormConfig), "its blocks are not post-norm")
        require(isinstance(block.mixer, MultiHeadAttentionConfig), "its mixer is not the paper's attention")
        found |= {
            f"{side}_layers": len(stack.blocks),
            f"{side}_attention_heads": block.mixer.n_heads,
            f"{side}_ffn_dim": block.feed_forward.d_ff,
            "attention_dropout": block.mixer.dropout,
            "activation_dropout": block.feed_forward.dropout,
            "activation_function": _activation(block.feed_forward),
        }
    return found


def _activation(feed_forward: Any) -> str:
    return "swish" if isinstance(feed_forward, SiLUFeedForwardConfig) else write_feed_forward(feed_forward)


def rules(config: EncoderDecoderConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = list(shared_rules(config))
    for side in SIDES:
        found += linear(f"model.{side}.layernorm_embedding", f"{side}.input_norm", bias=True)
        found.append(
            reordered(
                f"model.{side}.embed_positions.weight",
                f"{side}.position.table.weight",
                lambda table: table[UNUSED:],
                lambda table: F.pad(table, (0, 0, UNUSED, 0)),
            )
        )
    return found


def shared_rules(config: EncoderDecoderConfig) -> list[Rule]:
    """How the weights that BART and Marian share are called."""
    found = [same("model.shared.weight", "embedding.weight")]
    if isinstance(config.lm_head, HeadConfig) and config.lm_head.bias:
        found += [
            reordered("final_logits_bias", "lm_head.bias", lambda bias: bias[0], lambda bias: bias[None])
        ]
    for side in SIDES:
        for layer, block in enumerate(getattr(config, side).blocks):
            found += _block(f"model.{side}.layers.{layer}", f"{side}.blocks.{layer}", block)
    return found


def _block(theirs: str, ours: str, block: Any) -> list[Rule]:
    names = {"mixer": "self_attn"} | (
        {} if block.cross_attention is None else {"cross_attention": "encoder_attn"}
    )
    found = []
    for part, attention in names.items():
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found += linear(f"{theirs}.{attention}.{name}", f"{ours}.{part}.branch.{name}", bias=True)
        found += linear(f"{theirs}.{attention}_layer_norm", f"{ours}.{part}.norm", bias=True)
    found += linear(f"{theirs}.fc1", f"{ours}.feed_forward.branch.up_proj", bias=True)
    found += linear(f"{theirs}.fc2", f"{ours}.feed_forward.branch.down_proj", bias=True)
    return [*found, *linear(f"{theirs}.final_layer_norm", f"{ours}.feed_forward.norm", bias=True)]


IGNORED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "encoder.version", "decoder.version")
"""Second names of the embedding, and what the first releases kept."""

FAMILIES = (
    Family(
        "bart", "BartForConditionalGeneration", read, write, rules, "model.", IGNORED, complete,
        kind=EncoderDecoderConfig,
    ),
)  # fmt: skip
