"""The 2017 Transformer (arXiv 1706.03762), in the paper's own order, and the sockets everything plugs into.

Read: `transformer` (§3, the whole), `stack` (§3.1), `wiring` and `normalization` (§3.1, the residual connection),
`attention` (§3.2), `feed_forward` (§3.3), `embedding` (§3.4), `position` (§3.5); `sockets` holds what they agree on.
Beside the paper: `cache`, what decoding remembers, and `stacked`, maps of one shape in one matrix.
"""

from .attention import CrossAttention, MultiHeadAttention, scaled_dot_product_attention
from .embedding import TokenEmbedding
from .feed_forward import FeedForward
from .normalization import LayerNorm
from .position import LearnedPosition, SinusoidalPosition
from .sockets import AuxiliaryLosses, Context, Execution, Layout, Mask, Memory
from .stack import Block, Stack
from .transformer import EncoderDecoder, Transformer
from .wiring import PostNorm, PreNorm

__all__ = [
    "AuxiliaryLosses",
    "Block",
    "Context",
    "CrossAttention",
    "EncoderDecoder",
    "Execution",
    "FeedForward",
    "LayerNorm",
    "Layout",
    "LearnedPosition",
    "Mask",
    "Memory",
    "MultiHeadAttention",
    "PostNorm",
    "PreNorm",
    "SinusoidalPosition",
    "Stack",
    "TokenEmbedding",
    "Transformer",
    "scaled_dot_product_attention",
]
