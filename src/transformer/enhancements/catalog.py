"""The one table of parts: the name by which a config file calls a part, and its class.

A part is in the catalog by being listed here; every property that should hold of all parts is tested over this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from ..base.embedding import EmbeddingConfig
from ..base.feed_forward import ReluFeedForwardConfig
from ..base.normalization import LayerNormConfig, NoNormConfig
from ..base.position import LearnedPositionConfig, NoPositionConfig, SinusoidalPositionConfig
from ..base.sockets import Config
from ..base.stack import BlockConfig, StackConfig
from ..base.transformer import XavierConfig
from ..base.wiring import PostNormConfig, PreNormConfig
from .architecture.bert_input import NormedInputStackConfig, SegmentedEmbeddingConfig
from .architecture.layer_drop import LayerDropConfig
from .architecture.mixture_of_depths import MixtureOfDepthsConfig
from .architecture.moe.expert_choice import ExpertChoiceConfig
from .architecture.moe.losses import BalanceLossConfig, RouterZLossConfig, SequenceBalanceLossConfig
from .architecture.moe.mixture import MixtureOfExpertsConfig
from .architecture.moe.sigmoid import SigmoidTopKConfig
from .architecture.moe.soft import SoftMixtureOfExpertsConfig
from .architecture.moe.softmax import SoftmaxAfterTopKConfig, SoftmaxBeforeTopKConfig
from .architecture.output_dropout import OutputDropoutStackConfig
from .architecture.parallel import ParallelConfig
from .architecture.residual_multiplier import ResidualMultiplierConfig
from .architecture.stochastic_depth import StochasticDepthConfig
from .attention.delta_net import DeltaNetConfig
from .attention.differential import DifferentialAttentionConfig
from .attention.free_cross import FreeCrossAttentionConfig
from .attention.gated_delta_net import GatedDeltaNetConfig
from .attention.gated_linear import GatedLinearAttentionConfig
from .attention.grouped_query import GroupedQueryAttentionConfig
from .attention.linear import LinearAttentionConfig
from .attention.multi_head_latent import MultiHeadLatentAttentionConfig
from .attention.performer import PerformerConfig
from .attention.retention import RetentionConfig
from .attention.sliding_window import SlidingWindowAttentionConfig
from .embedding import NormedEmbeddingConfig
from .feed_forward.clamped_glu import ClampedGatedFeedForwardConfig
from .feed_forward.gelu import GELUFeedForwardConfig
from .feed_forward.glu import GatedFeedForwardConfig
from .feed_forward.mish import MishFeedForwardConfig
from .feed_forward.relu_squared import ReLUSquaredFeedForwardConfig
from .feed_forward.silu import SiLUFeedForwardConfig
from .feed_forward.token_gated import TokenGatedFeedForwardConfig
from .initialization import FanInConfig, GPT2Config, TruncatedNormalConfig
from .normalization.bias_free_layer_norm import BiasFreeLayerNormConfig
from .normalization.deep_norm import DeepNormConfig, DeepNormInitializationConfig
from .normalization.dynamic_tanh import DynamicTanhConfig
from .normalization.group_norm import GroupNormConfig
from .normalization.layer_scale import LayerScaleConfig
from .normalization.non_parametric_layer_norm import NonParametricLayerNormConfig
from .normalization.non_parametric_rms_norm import NonParametricRMSNormConfig
from .normalization.post_sublayer_norm import PostSublayerNormConfig
from .normalization.resi_dual import ResiDualConfig, ResiDualNormConfig
from .normalization.rms_norm import RMSNormConfig
from .normalization.sandwich_norm import SandwichNormConfig
from .normalization.scale_norm import ScaleNormConfig
from .normalization.unit_offset_rms_norm import UnitOffsetRMSNormConfig
from .position.alibi import ALiBiConfig
from .position.combined import CombinedPositionConfig
from .position.longrope import LongRopeScalingConfig
from .position.rope import RotaryPositionConfig
from .position.rope_scaling import (
    DynamicNTKRopeScalingConfig,
    LinearRopeScalingConfig,
    Llama3RopeScalingConfig,
    NoRopeScalingConfig,
    NTKRopeScalingConfig,
)
from .position.shaw import ShawAttentionConfig
from .position.split_sinusoids import SplitSinusoidalPositionConfig
from .position.t5_bias import T5BiasConfig
from .position.transformer_xl import TransformerXLAttentionConfig
from .position.xpos import XPositionConfig
from .position.yarn import YaRNRopeScalingConfig
from .ssm.initialization import MambaInitializationConfig
from .ssm.mamba import MambaConfig
from .ssm.mamba2 import Mamba2Config
from .ssm.rg_lru import RGLRUConfig
from .ssm.s4d import S4DConfig

CATALOG: Mapping[str, type[Config]] = MappingProxyType(
    {
        part.kind: part
        for part in (
            # mixers
            MultiHeadAttentionConfig,
            CrossAttentionConfig,
            FreeCrossAttentionConfig,
            GroupedQueryAttentionConfig,
            SlidingWindowAttentionConfig,
            MultiHeadLatentAttentionConfig,
            DifferentialAttentionConfig,
            LinearAttentionConfig,
            PerformerConfig,
            RetentionConfig,
            GatedLinearAttentionConfig,
            DeltaNetConfig,
            GatedDeltaNetConfig,
            ShawAttentionConfig,
            TransformerXLAttentionConfig,
            S4DConfig,
            MambaConfig,
            Mamba2Config,
            RGLRUConfig,
            # feed-forward
            ReluFeedForwardConfig,
            GELUFeedForwardConfig,
            ReLUSquaredFeedForwardConfig,
            SiLUFeedForwardConfig,
            MishFeedForwardConfig,
            GatedFeedForwardConfig,
            ClampedGatedFeedForwardConfig,
            TokenGatedFeedForwardConfig,
            MixtureOfExpertsConfig,
            ExpertChoiceConfig,
            SoftMixtureOfExpertsConfig,
            # routers of a mixture, and what is added to the objective for them
            SoftmaxBeforeTopKConfig,
            SoftmaxAfterTopKConfig,
            SigmoidTopKConfig,
            BalanceLossConfig,
            SequenceBalanceLossConfig,
            RouterZLossConfig,
            # position
            NoPositionConfig,
            SinusoidalPositionConfig,
            SplitSinusoidalPositionConfig,
            LearnedPositionConfig,
            RotaryPositionConfig,
            XPositionConfig,
            ALiBiConfig,
            T5BiasConfig,
            CombinedPositionConfig,
            # scaling of rotary positions
            NoRopeScalingConfig,
            LinearRopeScalingConfig,
            NTKRopeScalingConfig,
            DynamicNTKRopeScalingConfig,
            Llama3RopeScalingConfig,
            YaRNRopeScalingConfig,
            LongRopeScalingConfig,
            # normalization
            NoNormConfig,
            LayerNormConfig,
            RMSNormConfig,
            UnitOffsetRMSNormConfig,
            ScaleNormConfig,
            BiasFreeLayerNormConfig,
            NonParametricLayerNormConfig,
            NonParametricRMSNormConfig,
            GroupNormConfig,
            DynamicTanhConfig,
            ResiDualNormConfig,
            # wiring
            PostNormConfig,
            PreNormConfig,
            SandwichNormConfig,
            PostSublayerNormConfig,
            DeepNormConfig,
            ResiDualConfig,
            LayerScaleConfig,
            StochasticDepthConfig,
            # initialization
            XavierConfig,
            GPT2Config,
            TruncatedNormalConfig,
            FanInConfig,
            DeepNormInitializationConfig,
            MambaInitializationConfig,
            # what they are put into
            EmbeddingConfig,
            NormedEmbeddingConfig,
            SegmentedEmbeddingConfig,
            ParallelConfig,
            MixtureOfDepthsConfig,
            LayerDropConfig,
            ResidualMultiplierConfig,
            BlockConfig,
            StackConfig,
            NormedInputStackConfig,
            OutputDropoutStackConfig,
        )
    }
)
