"""What came after 2017: one paper, one file, one part that plugs into any model by configuration."""

from .architecture.stochastic_depth import stochastic_depth
from .attention.fused import fused_attention
from .catalog import CATALOG
from .compose import enhance, replace_parts
from .feed_forward.gelu import gelu
from .feed_forward.glu import bilinear, geglu, glu, llama_width, reglu, swiglu
from .feed_forward.mish import mish
from .feed_forward.relu_squared import relu_squared
from .feed_forward.silu import silu
from .no_bias import no_bias
from .normalization.pre_norm import pre_norm
from .normalization.rms_norm import rms_norm
from .position.rope import rope
from .switches import SWITCHES, apply_switches

__all__ = [
    "CATALOG",
    "SWITCHES",
    "apply_switches",
    "bilinear",
    "enhance",
    "fused_attention",
    "geglu",
    "gelu",
    "glu",
    "llama_width",
    "mish",
    "no_bias",
    "pre_norm",
    "reglu",
    "relu_squared",
    "replace_parts",
    "rms_norm",
    "rope",
    "silu",
    "stochastic_depth",
    "swiglu",
]
