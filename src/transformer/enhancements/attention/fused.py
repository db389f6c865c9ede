"""Attention by PyTorch's fused kernels: the same function as `base.attention`, without the matrix of weights.

On a GPU these are FlashAttention (Dao et al. 2022, arXiv 2205.14135; 2307.08691) and memory-efficient attention
(Rabe and Staats 2021, arXiv 2112.05682); on a CPU, a tiled kernel of the same kind. PyTorch chooses.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...base.sockets import Pairs


def fused_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s e"],
    pairs: Pairs,
    scale: float,
    dropout: float,
) -> Float[Tensor, "b h t e"]:
    """softmax(q kᵀ · scale + bias, masked) v, with O(t) memory where PyTorch's kernel for the device allows it.

    `is_causal` is used only where the mask is exactly the lower triangle: PyTorch aligns it to the top left corner,
    which would be wrong for new queries against cached keys. A query that sees no key gives zeros, as in the
    reference; the mask is opened for it and its output erased, since the softmax of nothing is undefined.
    """
    bias = None if pairs.bias is None else pairs.bias.to(q.dtype)
    if bias is None and pairs.triangular:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale, is_causal=True)
    if pairs.visible is None:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=scale)
    sighted = pairs.visible.any(dim=-1, keepdim=True)
    seen = pairs.visible | ~sighted
    mask = seen if bias is None else bias.masked_fill(~seen, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scale) * sighted
