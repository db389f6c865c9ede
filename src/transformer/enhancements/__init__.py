"""What came after 2017: one paper, one file, one part that plugs into any model by configuration."""

from .attention.fused import fused_attention
from .catalog import CATALOG
from .compose import enhance, replace_parts
from .feed_forward.gelu import gelu
from .normalization.pre_norm import pre_norm
from .normalization.rms_norm import rms_norm
from .position.rope import rope
from .switches import SWITCHES, apply_switches

__all__ = [
    "CATALOG",
    "SWITCHES",
    "apply_switches",
    "enhance",
    "fused_attention",
    "gelu",
    "pre_norm",
    "replace_parts",
    "rms_norm",
    "rope",
]
