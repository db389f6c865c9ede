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
from .architecture.stochastic_depth import StochasticDepthConfig
from .feed_forward.gelu import GELUFeedForwardConfig
from .feed_forward.glu import GatedFeedForwardConfig
from .feed_forward.mish import MishFeedForwardConfig
from .feed_forward.relu_squared import ReLUSquaredFeedForwardConfig
from .feed_forward.silu import SiLUFeedForwardConfig
from .initialization import GPT2Config
from .normalization.rms_norm import RMSNormConfig
from .position.rope import RotaryPositionConfig

CATALOG: Mapping[str, type[Config]] = MappingProxyType(
    {
        part.kind: part
        for part in (
            # mixers
            MultiHeadAttentionConfig,
            CrossAttentionConfig,
            # feed-forward
            ReluFeedForwardConfig,
            GELUFeedForwardConfig,
            ReLUSquaredFeedForwardConfig,
            SiLUFeedForwardConfig,
            MishFeedForwardConfig,
            GatedFeedForwardConfig,
            # position
            NoPositionConfig,
            SinusoidalPositionConfig,
            LearnedPositionConfig,
            RotaryPositionConfig,
            # normalization
            NoNormConfig,
            LayerNormConfig,
            RMSNormConfig,
            # wiring
            PostNormConfig,
            PreNormConfig,
            StochasticDepthConfig,
            # initialization
            XavierConfig,
            GPT2Config,
            # what they are put into
            EmbeddingConfig,
            BlockConfig,
            StackConfig,
        )
    }
)
