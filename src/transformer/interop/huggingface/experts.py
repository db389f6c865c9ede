"""Mixtures of experts as published families write them: one tensor for each expert's map, or one for all experts.

The hubs' files, and what `transformers` saves, have the former (`experts.3.up_proj.weight`); `transformers` computes
with the latter (`experts.gate_up_proj`, gates and what they gate one above the other) and saves it if asked to. Both
are read; the former is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...base.sockets import FeedForwardConfig, MixerConfig, NormConfig, PositionConfig
from ...base.stack import BlockConfig, StackConfig
from ...base.wiring import PreNormConfig
from ...enhancements.architecture.moe.losses import BalanceLossConfig, RouterLossConfig
from ...enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from ...enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ...enhancements.feed_forward.glu import GatedFeedForwardConfig
from ...enhancements.feed_forward.token_gated import TokenGatedFeedForwardConfig
from ...enhancements.initialization import GPT2Config
from ...enhancements.normalization.rms_norm import RMSNormConfig
from ...models import DecoderOnlyConfig
from .attributes import Attributes
from .family import require
from .gated import attention_rules
from .weights import Rule, linear, same

FUSED = ".experts.gate_up_proj"
GATED = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Names:
    """What a family calls the parts of a mixture: its place, its router, its experts' maps, its shared network."""

    place: str = "mlp"
    router: str = "gate"
    maps: tuple[str, str, str] = GATED
    shared: str = "shared_experts"


def refuse_quantized(attributes: Attributes) -> None:
    """Refuse weights that are stored as something else than numbers, naming the method."""
    section = attributes.section("quantization_config")
    if section is not None:
        method = section.take("quant_method", str, "an unknown method")
        raise attributes.fault(
            f"has weights quantized by {method!r}, which are not read; dequantize them first"
        )


def read_balance(attributes: Attributes, default: float = 0.001) -> tuple[RouterLossConfig, ...]:
    """Return the balance loss that training would add; what `output_router_logits` asks for has no effect on logits."""
    attributes.take("output_router_logits", bool, False)
    weight = attributes.take("router_aux_loss_coef", float, default)
    return (BalanceLossConfig(weight),) if weight else ()


def write_balance(mixture: MixtureOfExpertsConfig) -> dict[str, Any]:
    """Return the attribute that says the weight of the balance loss."""
    return {"router_aux_loss_coef": sum(loss.weight for loss in mixture.losses)}


def decoder(
    attributes: Attributes,
    d_model: int,
    layers: Sequence[tuple[MixerConfig, FeedForwardConfig]],
    norm: NormConfig,
    position: PositionConfig,
) -> DecoderOnlyConfig:
    """Return the decoder of these layers, and see that no attribute is left."""
    blocks = [BlockConfig(mixer, part, wiring=PreNormConfig(0.0), norm=norm) for mixer, part in layers]
    config = DecoderOnlyConfig(
        attributes.take("vocab_size", int),
        d_model,
        StackConfig(tuple(blocks), position, norm, 0.0),
        tie_embeddings=attributes.take("tie_word_embeddings", bool, False),
        initialization=GPT2Config(),
    )
    attributes.finish()
    return config


def first_mixture(config: DecoderOnlyConfig) -> tuple[int, MixtureOfExpertsConfig]:
    """Return the first layer that is a mixture of gated networks, and that; `OtherFamilyError` if there is none."""
    parts = [getattr(block, "feed_forward", None) for block in config.stack.blocks]
    found = [(i, part) for i, part in enumerate(parts) if isinstance(part, MixtureOfExpertsConfig)]
    require(found, "it has no mixture of experts")
    return found[0]


def norm_of(config: DecoderOnlyConfig) -> RMSNormConfig:
    """Return the norm at the end; `OtherFamilyError` unless it is RMSNorm."""
    norm = config.stack.norm
    require(isinstance(norm, RMSNormConfig), "its norm is not RMSNorm")
    assert isinstance(norm, RMSNormConfig)
    return norm


def rules(config: DecoderOnlyConfig, names: Names, fused: bool = False) -> Sequence[Rule]:
    """How the weights of a decoder of grouped attention, or another that says so itself, and experts are called."""
    found = [same("model.embed_tokens.weight", "embedding.weight"), *linear("model.norm", "stack.norm")]
    for layer, block in enumerate(config.stack.blocks):
        assert isinstance(block, BlockConfig)
        theirs, ours = f"model.layers.{layer}", f"stack.blocks.{layer}"
        if isinstance(block.mixer, GroupedQueryAttentionConfig):
            found += attention_rules(block.mixer, f"{theirs}.self_attn", f"{ours}.mixer.branch")
        found += network_rules(block.feed_forward, theirs, f"{ours}.feed_forward.branch", names, fused)
        found += linear(f"{theirs}.input_layernorm", f"{ours}.mixer.norm")
        found += linear(f"{theirs}.post_attention_layernorm", f"{ours}.feed_forward.norm")
    if not config.tie_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    return found


def network_rules(part: Any, layer: str, ours: str, names: Names, fused: bool) -> list[Rule]:
    """How the weights of one layer's network are called, a mixture or a gated one."""
    if isinstance(part, GatedFeedForwardConfig):
        return gated_rules(f"{layer}.mlp", ours)
    require(
        isinstance(part, MixtureOfExpertsConfig), "its feed-forward networks are neither gated nor mixtures"
    )
    place = f"{layer}.{'mlp' if fused else names.place}"
    found = linear(f"{place}.{names.router}", f"{ours}.router.proj", part.router.bias)
    found += fused_rules(place, ours) if fused else expert_rules(place, ours, part.n_experts, names.maps)
    if isinstance(part.shared, TokenGatedFeedForwardConfig):
        found += gated_rules(f"{place}.{names.shared}", f"{ours}.shared.inner")
        found.append(same(f"{place}.{names.shared}_gate.weight", f"{ours}.shared.gate.weight"))
    elif part.shared is not None:
        found += gated_rules(f"{place}.{names.shared}", f"{ours}.shared")
    return found


def gated_rules(theirs: str, ours: str) -> list[Rule]:
    """How the weights of one gated network are called."""
    return [same(f"{theirs}.{name}.weight", f"{ours}.{name}.weight") for name in GATED]


def expert_rules(place: str, ours: str, n: int, maps: Sequence[str]) -> list[Rule]:
    """One tensor for each expert and map, of which ours has one above the other."""
    return [
        Rule(
            tuple(f"{place}.experts.{i}.{name}.weight" for i in range(n)),
            (f"{ours}.experts.{path}.weight",),
            lambda x: [torch.cat(list(x))],
            lambda x: x[0].chunk(n),
        )
        for path, name in zip(GATED, maps, strict=True)
    ]


def fused_rules(place: str, ours: str) -> list[Rule]:
    """All experts in one tensor, each one's gate above what it gates."""

    def split(x: Sequence[Tensor]) -> list[Tensor]:
        return [rearrange(half, "x f d -> (x f) d") for half in x[0].chunk(2, dim=1)]

    def nothing(x: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError("files of this dialect are read only")

    paths = [f"{ours}.experts.{name}.weight" for name in GATED]
    return [
        Rule((f"{place}.experts.gate_up_proj",), tuple(paths[:2]), split, nothing),
        Rule(
            (f"{place}.experts.down_proj",),
            (paths[2],),
            lambda x: [rearrange(x[0], "x f d -> (x f) d")],
            nothing,
        ),
    ]
