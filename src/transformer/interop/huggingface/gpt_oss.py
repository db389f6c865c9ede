"""gpt-oss (OpenAI 2025, arXiv 2508.10925): attention with sinks, every other layer in a window, and clamped experts.

The softmax of the router comes after the choice, and router and experts have biases. An expert's gate and what it
gates are interleaved in one tensor for all experts, stored with the input axis first. Weights in MXFP4, as they were
released, are refused: only dequantized ones are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...base.sockets import FeedForwardConfig
from ...enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from ...enhancements.architecture.moe.softmax import SoftmaxAfterTopKConfig
from ...enhancements.feed_forward.clamped_glu import ClampedGatedFeedForwardConfig
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .blocks import either
from .experts import decoder, first_mixture, norm_of, read_balance, refuse_quantized, write_balance
from .family import Family, require
from .gated import attention_rules, grouped_attributes, read_attention
from .rope import read_rope, write_rope
from .weights import Rule, linear, same

FULL, LOCAL = "full_attention", "sliding_attention"


def read(attributes: Attributes) -> DecoderOnlyConfig:
    """Return the config that the attributes describe."""
    refuse_quantized(attributes)
    attributes.only("hidden_act", "silu")
    attributes.only("swiglu_alpha", 1.702)
    attributes.take("initial_context_length", int, None)
    d_model, n_layers = attributes.take("hidden_size", int), attributes.take("num_hidden_layers", int)
    norm = RMSNormConfig(attributes.take("rms_norm_eps", float, 1e-5))
    limit = attributes.take("swiglu_limit", float, 7.0)
    experts = ClampedGatedFeedForwardConfig(attributes.take("intermediate_size", int), limit=limit)
    top_k = either(attributes, int, ("num_experts_per_tok", "experts_per_token"), 4)
    mixture: FeedForwardConfig = MixtureOfExpertsConfig(
        attributes.take("num_local_experts", int),
        experts,
        SoftmaxAfterTopKConfig(top_k, bias=True),
        losses=read_balance(attributes),
    )
    bias = attributes.take("attention_bias", bool, True)
    windows = _windows(attributes, n_layers)
    mixers = read_attention(attributes, d_model, windows, {"sinks": True, "bias": bias}, 64)
    position = read_rope(attributes, attributes.take("max_position_embeddings", int, 131072), 150000.0)
    return decoder(attributes, d_model, [(mixer, mixture) for mixer in mixers], norm, position)


def _windows(attributes: Attributes, n_layers: int) -> list[int | None]:
    """The window of each layer; if no attribute says which have one, the first, the third and so on."""
    window = attributes.take("sliding_window", int, 128)
    kinds = attributes.take("layer_types", list, [FULL if i % 2 else LOCAL for i in range(n_layers)])
    if len(kinds) != n_layers or any(kind not in (FULL, LOCAL) for kind in kinds):
        raise attributes.fault(f"has layer_types other than {FULL} or {LOCAL} for each layer")
    return [window if kind == LOCAL else None for kind in kinds]


def write(config: DecoderOnlyConfig) -> dict[str, Any]:
    """Return the attributes that describe the config; `OtherFamilyError` where none do."""
    found, (_, mixture) = grouped_attributes(config), first_mixture(config)
    blocks: Any = config.stack.blocks
    experts: Any = mixture.experts
    require(isinstance(experts, ClampedGatedFeedForwardConfig), "its experts are not clamped")
    windows = [getattr(block.mixer, "window", None) for block in blocks]
    local = [window for window in windows if window is not None]
    return (
        found
        | write_balance(mixture)
        | {
            "head_dim": blocks[0].mixer.head_width(config.d_model),
            "intermediate_size": experts.d_ff,
            "swiglu_limit": experts.limit,
            "num_local_experts": mixture.n_experts,
            "num_experts_per_tok": mixture.router.top_k,
            "hidden_act": "silu",
            "rms_norm_eps": norm_of(config).epsilon,
            "sliding_window": local[0] if local else 128,
            "layer_types": [FULL if window is None else LOCAL for window in windows],
            "rope_parameters": write_rope(config.stack.position),  # type: ignore[arg-type]
        }
    )


def rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("model.embed_tokens.weight", "embedding.weight"), *linear("model.norm", "stack.norm")]
    blocks: Any = config.stack.blocks
    for layer, block in enumerate(blocks):
        theirs, ours = f"model.layers.{layer}", f"stack.blocks.{layer}"
        found += attention_rules(block.mixer, f"{theirs}.self_attn", f"{ours}.mixer.branch")
        found += _mixture_rules(f"{theirs}.mlp", f"{ours}.feed_forward.branch", block.feed_forward.n_experts)
        found += linear(f"{theirs}.input_layernorm", f"{ours}.mixer.norm")
        found += linear(f"{theirs}.post_attention_layernorm", f"{ours}.feed_forward.norm")
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def _mixture_rules(theirs: str, ours: str, n: int) -> list[Rule]:
    found = linear(f"{theirs}.router", f"{ours}.router.proj", True)
    place = f"{ours}.experts"
    for kind, suffix in (("weight", ""), ("bias", "_bias")):
        pair = (f"{place}.gate_proj.{kind}", f"{place}.up_proj.{kind}")
        found.append(
            Rule((f"{theirs}.experts.gate_up_proj{suffix}",), pair, _part, lambda x: _interleave(x, n))
        )
        one = (f"{place}.down_proj.{kind}",)
        found.append(Rule((f"{theirs}.experts.down_proj{suffix}",), one, _turn, lambda x: [_apart(x[0], n)]))
    return found


def _turn(x: Sequence[Tensor]) -> list[Tensor]:
    """Experts' matrices with the output axis first, or their biases, one above the other."""
    return [rearrange(x[0], "x d f -> (x f) d" if x[0].dim() == 3 else "x f -> (x f)")]


def _apart(x: Tensor, n: int) -> Tensor:
    """The way back."""
    apart: Tensor = rearrange(x, "(x f) d -> x d f" if x.dim() == 2 else "(x f) -> x f", x=n)
    return apart


def _part(x: Sequence[Tensor]) -> list[Tensor]:
    """Gates are the even outputs, what they gate the odd ones."""
    return [_turn([x[0][..., i::2]])[0] for i in (0, 1)]


def _interleave(x: Sequence[Tensor], n: int) -> list[Tensor]:
    """The way back."""
    return [torch.stack([_apart(half, n) for half in x], dim=-1).flatten(-2)]


FAMILIES = (Family("gpt_oss", "GptOssForCausalLM", read, write, rules),)
