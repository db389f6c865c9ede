"""Cross-attention with a free width of its heads and a free scale (T5, Raffel et al. 2019, arXiv 1910.10683 §2.1).

    head_i = softmax(scale · Q W_i^Q (M W_i^K)ᵀ) M W_i^V,   M the encoder's output

The paper's cross-attention (arXiv 1706.03762 §3.2.3) splits d_model into its heads and scales by 1/√e. T5 gives each
head 64 or 128 dimensions whatever d_model is, and has no scale: the first weights of its queries are smaller instead
(`FanInConfig`). Cost: as the paper's with n_heads · d_head in place of d_model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from torch import nn

from ...base.attention import CrossAttention, CrossAttentionConfig
from ...base.sockets import Layer, OutputProjection


class FreeCrossAttention(CrossAttention):
    """Encoder-decoder attention whose heads are `d_head` wide and whose products are multiplied by `scale`."""

    def __init__(
        self, d_model: int, n_heads: int, d_head: int, scale: float, dropout: float = 0.0, bias: bool = False
    ) -> None:
        Layer.__init__(self)  # not the paper's, which would split d_model
        self.n_heads, self.dropout, self.scale = n_heads, dropout, scale
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.out_proj = OutputProjection(n_heads * d_head, d_model, bias=bias)


@dataclass(frozen=True)
class FreeCrossAttentionConfig(CrossAttentionConfig):
    """Attention to the encoder's output. d_head: of each head; scale: of the products, null being 1/√d_head."""

    kind: ClassVar[str] = "free_cross_attention"
    d_head: Annotated[int, Ge(1)] = 64
    scale: Annotated[float, Gt(0)] | None = None

    def build(self, d_model: int) -> FreeCrossAttention:
        scale = 1 / math.sqrt(self.d_head) if self.scale is None else self.scale
        return FreeCrossAttention(d_model, self.n_heads, self.d_head, scale, self.dropout, self.bias)
