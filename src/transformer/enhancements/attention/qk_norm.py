"""Query-key normalization (Henry et al. 2020, arXiv 2010.04245; ViT-22B, Dehghani et al. 2023, arXiv 2302.05442).

    score = norm(q) · norm(k) · scale,   over the e entries of one head, before rotation

Scores then cannot grow with the norms of queries and keys, whose growth makes large models diverge. Henry et al.
divide by the length and learn one scale for the whole head; here, as in ViT-22B, Qwen3 and Gemma 3, the norm has a gain
for each dimension (LayerNorm or RMSNorm, shared by all heads of a layer) and the scale stays 1/√e. Rotations keep
lengths, so norm-then-rotate keeps the bound. Cost: O(e) for each query and key.

OLMo 2 (arXiv 2501.00656) normalizes all heads of a token together, before they are split: `over="projection"`, which
has a gain for each dimension of each head, and lets one head be louder than another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ...base.sockets import Enhancement, NormConfig
from ..normalization.rms_norm import RMSNormConfig
from .grouped_query import change_attention


def qk_norm(norm: NormConfig | None = None, over: Literal["head", "projection"] = "head") -> Enhancement:
    """Normalize the queries and keys of every self-attention; by RMSNorm unless another norm is given.

    over: the entries of one head, or of all heads of a token together.
    """
    chosen = RMSNormConfig() if norm is None else norm
    return change_attention(lambda part: replace(part, qk_norm=chosen, qk_norm_over=over))
