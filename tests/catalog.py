"""Every part of the catalog, put into models small enough to differentiate whole.

A part is enrolled by being listed in `CATALOG`: a small one is made of its class and put where its socket belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch

from transformer.base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from transformer.base.embedding import EmbeddingConfig
from transformer.base.feed_forward import ReluFeedForwardConfig
from transformer.base.normalization import LayerNormConfig
from transformer.base.position import LearnedPositionConfig, NoPositionConfig, SinusoidalPositionConfig
from transformer.base.sockets import (
    Config,
    Execution,
    FeedForwardConfig,
    InitializationConfig,
    LayerConfig,
    MixerConfig,
    NormConfig,
    PositionConfig,
    WiringConfig,
)
from transformer.base.stack import BlockConfig, StackConfig
from transformer.base.transformer import EncoderDecoderConfig
from transformer.base.wiring import PostNormConfig
from transformer.enhancements import CATALOG, naive_attention, replace_parts, sdpa_attention
from transformer.enhancements.architecture.layer_drop import LayerDropConfig
from transformer.enhancements.architecture.mixture_of_depths import MixtureOfDepthsConfig
from transformer.enhancements.architecture.moe.expert_choice import ExpertChoiceConfig
from transformer.enhancements.architecture.moe.losses import (
    BalanceLossConfig,
    RouterLossConfig,
    RouterZLossConfig,
    SequenceBalanceLossConfig,
)
from transformer.enhancements.architecture.moe.mixture import MixtureOfExpertsConfig
from transformer.enhancements.architecture.moe.routing import RouterConfig
from transformer.enhancements.architecture.moe.sigmoid import SigmoidTopKConfig
from transformer.enhancements.architecture.moe.soft import SoftMixtureOfExpertsConfig
from transformer.enhancements.architecture.moe.softmax import SoftmaxAfterTopKConfig, SoftmaxBeforeTopKConfig
from transformer.enhancements.architecture.output_dropout import OutputDropoutStackConfig
from transformer.enhancements.architecture.parallel import ParallelConfig
from transformer.enhancements.architecture.residual_multiplier import ResidualMultiplierConfig
from transformer.enhancements.architecture.stochastic_depth import StochasticDepthConfig
from transformer.enhancements.attention.free_cross import FreeCrossAttentionConfig
from transformer.enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from transformer.enhancements.attention.linear import LinearAttentionConfig
from transformer.enhancements.attention.multi_head_latent import MultiHeadLatentAttentionConfig
from transformer.enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from transformer.enhancements.compose import has_part
from transformer.enhancements.embedding import NormedEmbeddingConfig
from transformer.enhancements.feed_forward.clamped_glu import ClampedGatedFeedForwardConfig
from transformer.enhancements.feed_forward.gelu import GELUFeedForwardConfig
from transformer.enhancements.feed_forward.glu import GatedFeedForwardConfig
from transformer.enhancements.feed_forward.token_gated import TokenGatedFeedForwardConfig
from transformer.enhancements.initialization import FanInConfig
from transformer.enhancements.normalization.deep_norm import DeepNormConfig
from transformer.enhancements.normalization.dynamic_tanh import DynamicTanhConfig
from transformer.enhancements.normalization.group_norm import GroupNormConfig
from transformer.enhancements.normalization.layer_scale import LayerScaleConfig
from transformer.enhancements.normalization.non_parametric_layer_norm import NonParametricLayerNormConfig
from transformer.enhancements.normalization.non_parametric_rms_norm import NonParametricRMSNormConfig
from transformer.enhancements.normalization.post_sublayer_norm import PostSublayerNormConfig
from transformer.enhancements.normalization.resi_dual import ResiDualConfig, ResiDualNormConfig, resi_dual
from transformer.enhancements.normalization.rms_norm import RMSNormConfig
from transformer.enhancements.normalization.sandwich_norm import SandwichNormConfig
from transformer.enhancements.normalization.scale_norm import ScaleNormConfig
from transformer.enhancements.normalization.unit_offset_rms_norm import UnitOffsetRMSNormConfig
from transformer.enhancements.position.alibi import ALiBiConfig
from transformer.enhancements.position.combined import CombinedPositionConfig
from transformer.enhancements.position.longrope import LongRopeScalingConfig
from transformer.enhancements.position.rope import RotaryPositionConfig
from transformer.enhancements.position.rope_scaling import (
    DynamicNTKRopeScalingConfig,
    LinearRopeScalingConfig,
    Llama3RopeScalingConfig,
    NoRopeScalingConfig,
    NTKRopeScalingConfig,
    RopeScalingConfig,
)
from transformer.enhancements.position.schemes import RelativeAttentionConfig
from transformer.enhancements.position.shaw import ShawAttentionConfig
from transformer.enhancements.position.split_sinusoids import SplitSinusoidalPositionConfig
from transformer.enhancements.position.t5_bias import T5BiasConfig
from transformer.enhancements.position.transformer_xl import TransformerXLAttentionConfig
from transformer.enhancements.position.xpos import XPositionConfig
from transformer.enhancements.position.yarn import YaRNRopeScalingConfig
from transformer.enhancements.ssm.initialization import MambaInitializationConfig
from transformer.enhancements.ssm.mamba import MambaConfig
from transformer.enhancements.ssm.mamba2 import Mamba2Config
from transformer.enhancements.ssm.rg_lru import RGLRUConfig
from transformer.enhancements.ssm.s4d import S4DConfig
from transformer.models import DecoderOnlyConfig, Model, ModelConfig, build

VOCAB, WIDTH, HEADS, LAYERS = 11, 12, 3, 2
SMALL: dict[str, Any] = {
    "n_heads": HEADS,
    "d_ff": 20,
    "max_seq_len": 40,
    "n_groups": 3,
    "n_features": 5,
    "gate_rank": 3,
    "alpha": 1.7,
    "beta": 0.6,
    "dropout": 0.2,
    "window": 5,
    "multiplier": 0.4,
    "kv_rank": 6,
    "d_content": 4,
    "d_rotary": 2,
    "d_value": 5,  # two windows see every token
    "d_state": 6,
    "d_head": 4,
}
"""The values of the fields that a part may have, sized for tests; a part's other fields keep their defaults."""

MEETING: tuple[tuple[type[NormConfig], type[WiringConfig]], ...] = (
    (ScaleNormConfig, SandwichNormConfig),
    (GroupNormConfig, PostSublayerNormConfig),
    (DynamicTanhConfig, LayerScaleConfig),
    (UnitOffsetRMSNormConfig, DeepNormConfig),
    (NonParametricLayerNormConfig, ResidualMultiplierConfig),
    (NonParametricRMSNormConfig, StochasticDepthConfig),
)
"""A norm and a wiring that are proved in the same models, to save time."""

STATE_SPACE: tuple[type[MixerConfig], ...] = (S4DConfig, MambaConfig, Mamba2Config, RGLRUConfig)
HYBRID: tuple[MixerConfig, ...] = (
    MambaConfig(18, 5, 3, convolution=3, conv_bias=False, bias=True, inner_norm=RMSNormConfig()),
    MultiHeadAttentionConfig(HEADS, dropout=0.2),
    Mamba2Config(16, 5, 4, n_groups=2, convolution=3, conv_bias=False, bias=True),
    S4DConfig(4, "inv", "bilinear"),
    RGLRUConfig(18, 2, convolution=3),
)
"""State-space models are proved in the blocks of one decoder, and other forms of them, beside attention, in another."""

OTHER_FORMS = (
    MultiHeadAttentionConfig(HEADS, dropout=0.2, bias=True),
    MultiHeadAttentionConfig(1),
    GroupedQueryAttentionConfig(6, 2, d_head=4, dropout=0.2, bias=True, out_bias=False, scale=0.3),
    GroupedQueryAttentionConfig(4, 1, qk_norm=RMSNormConfig(), soft_cap=1.5, sinks=True),
    GroupedQueryAttentionConfig(6, 2, d_head=4, qk_norm=RMSNormConfig(), qk_norm_over="projection"),
    SlidingWindowAttentionConfig(4, 2, qk_norm=LayerNormConfig(), sinks=True, window=5),
    MultiHeadLatentAttentionConfig(2, 5, q_rank=7, d_content=3, d_rotary=4, d_value=6),
    GELUFeedForwardConfig(20, bias=False, form="tanh"),
    GatedFeedForwardConfig(20, dropout=0.2, bias=True, activation="gelu"),
    BlockConfig(LinearAttentionConfig(HEADS, True), None, position=RotaryPositionConfig()),
    HYBRID[0],
    EmbeddingConfig(scaled=False),
    NormedEmbeddingConfig(multiplier=3.0, norm=LayerNormConfig()),
)
"""Parts with other values than their defaults, to be held to the same properties."""

SCALINGS: tuple[RopeScalingConfig, ...] = (
    NoRopeScalingConfig(),
    LinearRopeScalingConfig(3.0),
    NTKRopeScalingConfig(3.0),
    DynamicNTKRopeScalingConfig(3.0, original_length=9),
    Llama3RopeScalingConfig(4.0, original_length=100),
    YaRNRopeScalingConfig(4.0, original_length=400),
    LongRopeScalingConfig((1.0, 1.5), (1.5, 4.0), factor=4.0, original_length=9),
)
"""Every scaling of rotary positions."""

BLOCK_POSITIONS: tuple[PositionConfig, ...] = (
    ALiBiConfig(HEADS),
    T5BiasConfig(HEADS, "bidirectional", n_buckets=8, max_distance=9),
    XPositionConfig(max_seq_len=40, scale_base=6.0),
    RotaryPositionConfig(50.0, "interleaved", fraction=0.5),
    *(RotaryPositionConfig(50.0, scaling=scaling, max_seq_len=40) for scaling in SCALINGS),
)
"""Position schemes that are proved together, to save time: each in a block of its own, in a stack that has T5's."""
RELATIVE: tuple[MixerConfig, ...] = (
    ShawAttentionConfig(HEADS, dropout=0.2, bias=True, max_distance=3),
    TransformerXLAttentionConfig(HEADS, dropout=0.2, window=5),
    TransformerXLAttentionConfig(HEADS, dropout=0.2, bias=True),
)
"""Kinds of attention with a position scheme of their own, in the blocks of one stack that has none."""

EXPERT = GatedFeedForwardConfig(7)
MIXTURES: tuple[FeedForwardConfig, ...] = (
    MixtureOfExpertsConfig(
        5,
        GatedFeedForwardConfig(6, bias=True, activation="gelu"),
        SoftmaxBeforeTopKConfig(2, jitter=0.1, bias=True, scale=1.7),
        capacity_factor=0.8,
        losses=(BalanceLossConfig(0.3), SequenceBalanceLossConfig(0.2), RouterZLossConfig(0.1)),
    ),
    MixtureOfExpertsConfig(3, GELUFeedForwardConfig(9), SoftmaxBeforeTopKConfig(2, renormalize=True)),
    MixtureOfExpertsConfig(4, ReluFeedForwardConfig(9, bias=False), SoftmaxAfterTopKConfig(2)),
    MixtureOfExpertsConfig(
        6, ClampedGatedFeedForwardConfig(7, limit=0.3), SigmoidTopKConfig(2, n_groups=3, top_groups=2, scale=2.5),
        TokenGatedFeedForwardConfig(EXPERT),
    ),
    TokenGatedFeedForwardConfig(EXPERT),
)  # fmt: skip
"""Mixtures of experts with every router, loss and kind of expert, in the blocks of one stack."""
CHOOSERS = (ExpertChoiceConfig(4, EXPERT, 1.6), SoftMixtureOfExpertsConfig(3, GELUFeedForwardConfig(7), 2))
"""Experts that see the whole sequence, in the blocks of one encoder."""

MixtureConfig = (
    RouterConfig
    | RouterLossConfig
    | MixtureOfExpertsConfig
    | ExpertChoiceConfig
    | SoftMixtureOfExpertsConfig
    | TokenGatedFeedForwardConfig
)


def state_space(part: Config) -> tuple[ModelConfig, ...]:
    """The decoder that holds all state-space models, or the one that holds other forms of them."""
    mixers = HYBRID if part in HYBRID else tuple(small(kind) for kind in STATE_SPACE)
    blocks = tuple(decoder_block(mixer=mixer, feed_forward=None) for mixer in mixers)
    stack = StackConfig(blocks, NoPositionConfig(), dropout=0.2)
    return (DecoderOnlyConfig(VOCAB, WIDTH, stack, initialization=MambaInitializationConfig()),)


TOGETHER: tuple[type[Config], ...] = (
    FreeCrossAttentionConfig,
    OutputDropoutStackConfig,
    SplitSinusoidalPositionConfig,
    FanInConfig,
)
"""Parts of published encoder-decoders, which do not touch each other: proved in the same two models, to save time."""

KERNELS = (naive_attention, sdpa_attention)
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)


@dataclass(frozen=True)
class Row:
    """A part and the models it stands in."""

    name: str
    kind: str
    models: tuple[ModelConfig, ...]


def small(part: type[Config]) -> Config:
    """A small config of this class."""
    return part(**{field.name: SMALL[field.name] for field in fields(part) if field.name in SMALL})


def decoder_block(**parts: Any) -> BlockConfig:
    default = BlockConfig(
        MultiHeadAttentionConfig(HEADS, dropout=0.2),
        ReluFeedForwardConfig(20, dropout=0.2),
        wiring=PostNormConfig(0.2),
        norm=LayerNormConfig(),
    )
    return replace(default, **parts)


def decoder_only(block: LayerConfig | None = None, **options: Any) -> DecoderOnlyConfig:
    position = options.pop("position", SinusoidalPositionConfig(SMALL["max_seq_len"]))
    stack = StackConfig((decoder_block() if block is None else block,) * LAYERS, position, dropout=0.2)
    return DecoderOnlyConfig(VOCAB, WIDTH, stack, **options)


def encoder_decoder(encoder: LayerConfig, decoder: LayerConfig, **options: Any) -> EncoderDecoderConfig:
    position = options.pop("position", SinusoidalPositionConfig(SMALL["max_seq_len"]))
    stacks = [StackConfig((block,) * LAYERS, position, dropout=0.2) for block in (encoder, decoder)]
    return EncoderDecoderConfig(VOCAB, WIDTH, stacks[0], stacks[1], **options)


def company(part: Config) -> dict[str, Config]:
    """The parts of its block that `part` is proved together with."""
    for norm, wiring in MEETING:
        if type(part) is norm:
            return {"wiring": small(wiring)}
        if type(part) is wiring:
            return {"norm": small(norm)}
    return {}


def positioned(part: Config) -> tuple[ModelConfig, ...]:
    """The models that hold all position schemes which act in the blocks, or in the mixers."""
    if isinstance(part, RelativeAttentionConfig):
        blocks = tuple(decoder_block(mixer=mixer) for mixer in RELATIVE)
        return several(blocks, blocks, NoPositionConfig())
    blocks = tuple(decoder_block(feed_forward=None, position=scheme) for scheme in BLOCK_POSITIONS)
    return several((decoder_block(), *blocks), (decoder_block(), *blocks[:3]), T5BiasConfig(HEADS))


def several(
    blocks: tuple[BlockConfig, ...], fewer: tuple[BlockConfig, ...], position: PositionConfig
) -> tuple[ModelConfig, ...]:
    """A decoder of these blocks, and an encoder-decoder of the fewer ones."""
    decoder = StackConfig(blocks, position, dropout=0.2)
    encoder = StackConfig(fewer, position, dropout=0.2)
    crossed = tuple(replace(block, cross_attention=CrossAttentionConfig(HEADS)) for block in fewer)
    pair = EncoderDecoderConfig(VOCAB, WIDTH, encoder, replace(encoder, blocks=crossed))
    return DecoderOnlyConfig(VOCAB, WIDTH, decoder), pair


def mixtures(part: Config) -> tuple[ModelConfig, ...]:
    """The models that hold all mixtures of experts: a decoder, and an encoder-decoder for those that see both ways."""
    plain, crossed = decoder_block(), decoder_block(cross_attention=CrossAttentionConfig(HEADS))
    if not getattr(part, "both_ways_only", False):
        blocks = tuple(decoder_block(feed_forward=mixture) for mixture in MIXTURES)
        stack = StackConfig(blocks, SinusoidalPositionConfig(SMALL["max_seq_len"]), dropout=0.2)
        return (DecoderOnlyConfig(VOCAB, WIDTH, stack),)
    model = encoder_decoder(plain, crossed)
    blocks = tuple(decoder_block(feed_forward=chooser) for chooser in CHOOSERS)
    return (replace(model, encoder=replace(model.encoder, blocks=blocks)),)


def together() -> tuple[ModelConfig, ...]:
    """The models that hold all of `TOGETHER`."""
    cross = FreeCrossAttentionConfig(2, dropout=0.2, bias=True, d_head=5, scale=0.7)
    plain, crossed = (
        OutputDropoutStackConfig((block,) * LAYERS, SplitSinusoidalPositionConfig(40), dropout=0.2)
        for block in (decoder_block(), decoder_block(cross_attention=cross))
    )
    first = FanInConfig()
    return (
        DecoderOnlyConfig(VOCAB, WIDTH, plain, initialization=first),
        EncoderDecoderConfig(VOCAB, WIDTH, plain, crossed, initialization=first),
    )


def left_to_right(part: Config) -> EncoderDecoderConfig:
    """An encoder-decoder with `part`, which cannot stand in an encoder, in its decoder; one for all such, for time."""
    kinds = [kind for kind in CATALOG.values() if kind not in STATE_SPACE]
    mixers = [small(kind) for kind in kinds if getattr(kind, "causal_only", False)]
    cross = CrossAttentionConfig(HEADS)
    blocks = [decoder_block(mixer=mixer, cross_attention=cross) for mixer in mixers if part in mixers]
    blocks = blocks or [decoder_block(mixer=part, cross_attention=cross)] * LAYERS
    model = encoder_decoder(decoder_block(), decoder_block())
    return replace(model, decoder=replace(model.decoder, blocks=tuple(blocks)))


def with_cross_attention(part: LayerConfig) -> tuple[ModelConfig, ...]:
    """An encoder-decoder of this block; one that holds another is put beside an encoder by its own tests."""
    if not isinstance(part, BlockConfig):
        return ()
    return (encoder_decoder(part, replace(part, cross_attention=CrossAttentionConfig(HEADS))),)


TOGETHER: tuple[tuple[Any, Callable[[Any], tuple[ModelConfig, ...]]], ...] = (
    (RopeScalingConfig | ALiBiConfig | T5BiasConfig | XPositionConfig | RelativeAttentionConfig, positioned),
    (RouterConfig | RouterLossConfig | MixtureOfExpertsConfig | TokenGatedFeedForwardConfig, mixtures),
    (ExpertChoiceConfig | SoftMixtureOfExpertsConfig | ClampedGatedFeedForwardConfig, mixtures),
    (S4DConfig | MambaConfig | Mamba2Config | RGLRUConfig | MambaInitializationConfig, state_space),
    (StackConfig, lambda part: (DecoderOnlyConfig(VOCAB, WIDTH, part),)),
)
"""Kinds of part that are proved in models of their own, some together."""


def models_with(part: Config) -> tuple[ModelConfig, ...]:
    """The models that hold `part`: a decoder and an encoder-decoder, where both are possible."""
    cross = CrossAttentionConfig(HEADS)
    if isinstance(part, CrossAttentionConfig):
        return (encoder_decoder(decoder_block(), decoder_block(cross_attention=part)),)
    if isinstance(part, LayerConfig) and not isinstance(part, MixerConfig | FeedForwardConfig):
        return (decoder_only(part), *with_cross_attention(part))
    for kinds, together in TOGETHER:
        if isinstance(part, kinds):
            return together(part)
    if isinstance(part, ResiDualConfig | ResiDualNormConfig):  # the two only work together
        plain = models_with(PostNormConfig(0.2))
        return tuple(replace_parts(resi_dual()(model), type(part), lambda _: part) for model in plain)
    sockets: dict[type[Config], str] = {
        MixerConfig: "mixer",
        FeedForwardConfig: "feed_forward",
        NormConfig: "norm",
        WiringConfig: "wiring",
    }
    for socket, name in sockets.items():
        if isinstance(part, socket):
            block = decoder_block(**company(part), **{name: part})
            both = encoder_decoder(block, replace(block, cross_attention=cross))
            return (decoder_only(block), left_to_right(part) if getattr(part, "causal_only", False) else both)
    options = {
        PositionConfig: "position",
        EmbeddingConfig: "embedding",
        InitializationConfig: "initialization",
    }
    for socket, name in options.items():
        if isinstance(part, socket):
            block, crossed = decoder_block(), decoder_block(cross_attention=cross)
            return (decoder_only(block, **{name: part}), encoder_decoder(block, crossed, **{name: part}))
    raise LookupError(
        f"no model here has a place for the kind {part.kind!r}; say in tests/catalog.py where it goes"
    )


def instance(part: type[Config]) -> Config:
    """A small instance; of what holds other parts, one with small parts."""
    if part is CombinedPositionConfig:
        bias = T5BiasConfig(HEADS, "bidirectional", n_buckets=8, max_distance=9)
        return CombinedPositionConfig((LearnedPositionConfig(SMALL["max_seq_len"]), bias))
    if part is LayerDropConfig:
        return LayerDropConfig(decoder_block(), rate=0.0)
    if part is MixtureOfDepthsConfig:
        return MixtureOfDepthsConfig(decoder_block(), capacity=0.5)
    if part is ParallelConfig:
        return ParallelConfig(
            MultiHeadAttentionConfig(HEADS, dropout=0.2), ReluFeedForwardConfig(20), LayerNormConfig()
        )
    if part is BlockConfig:
        return decoder_block()
    if issubclass(part, StackConfig):
        mixed = (decoder_block(), decoder_block(feed_forward=None), decoder_block(mixer=None))
        return part(mixed, SinusoidalPositionConfig(SMALL["max_seq_len"]), LayerNormConfig(), 0.2)
    if issubclass(part, RopeScalingConfig):
        return next(scaling for scaling in SCALINGS if type(scaling) is part)
    return small(part)


def rows() -> Iterator[Row]:
    parts = [instance(part) for part in CATALOG.values()]
    for part in (*parts, *OTHER_FORMS):
        models = together() if type(part) in TOGETHER else models_with(part)
        yield Row(part.kind if part in parts else f"{part!r}", part.kind, models)


def distinct(rows: Iterable[Row]) -> dict[ModelConfig, str]:
    """Each model once, with the names of the parts it proves: most defaults meet in the same model."""
    names: dict[ModelConfig, list[str]] = {}
    for row in rows:
        for model in row.models:
            names.setdefault(model, []).append(row.name)
    return {model: f"{model.kind}:{'+'.join(parts)}" for model, parts in names.items()}


ROWS = tuple(rows())
EVERY = distinct(ROWS)


def each(
    kind: type[Any] | tuple[type[Any], ...] = object, *, but: type[Config] | None = None
) -> pytest.MarkDecorator:
    """Parametrise a test over the models of every row that are of this kind, and have no part of the kind `but`."""
    chosen = [c for c in EVERY if isinstance(c, kind) and not (but is not None and has_part(c, but))]
    return pytest.mark.parametrize("config", chosen, ids=EVERY.__getitem__)


def meets_kernel(config: ModelConfig) -> bool:
    """Whether a part that the model proves has to do with who attends to whom; the others are as they are under any."""
    apart = (
        NormConfig,
        WiringConfig,
        FeedForwardConfig,
        EmbeddingConfig,
        InitializationConfig,
        MixtureConfig,
    )
    return any(not issubclass(CATALOG[row.kind], apart) for row in ROWS if config in row.models)


def each_with_kernels(
    kind: type[Any] | tuple[type[Any], ...] = object, *, but: type[Config] | None = None
) -> pytest.MarkDecorator:
    """As `each`, with every kernel where that can make a difference, else with the naive one."""
    chosen = [
        pytest.param(config, kernel, id=f"{kernel.__name__}-{name}")
        for config, name in EVERY.items()
        for kernel in (KERNELS if meets_kernel(config) else KERNELS[:1])
        if isinstance(config, kind) and not (but is not None and has_part(config, but))
    ]
    return pytest.mark.parametrize(("config", "kernel"), chosen)


def make(
    config: ModelConfig, execution: Execution | None = None, dtype: torch.dtype = torch.float64
) -> Model:
    """Build the model in eval mode, all its parameters away from special values such as 0 and 1."""
    torch.default_generator.manual_seed(7)
    model = build(config, execution).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64).to(dtype))
    return model
