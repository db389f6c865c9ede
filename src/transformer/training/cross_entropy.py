"""Cross-entropy with label smoothing, its gradient made in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS_AT_ONCE = 128  # what fits a core's cache at usual vocabularies; on a GPU more would be better


class SmoothedCrossEntropy(torch.autograd.Function):
    """Σ over rows of −Σ_v q_v log p_v, with p = softmax(z) and q = (1 − ε)·onehot(label) + ε/V.

        loss = log Σ_v e^{z_v} − (1 − ε)·z_label − ε·mean_v z_v,    ∂loss/∂z_v = p_v − q_v

    The gradient needs nothing that the loss does not, so it is written while a few rows are in the cache, instead
    of keeping a matrix of log-probabilities and walking through it three more times. Sums are in float32 or better.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "n v"], labels: Int[Tensor, " n"], epsilon: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return (loss, plain negative log-likelihood), each summed over the rows whose label is not negative."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=wide, device=logits.device)
        nll = torch.zeros_like(total)
        for first in range(0, len(logits), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            z, counted = logits[rows].to(wide, copy=True), labels[rows] >= 0
            index = labels[rows].clamp(min=0)[:, None]
            normalizer = z.logsumexp(1, keepdim=True)
            surprise = (normalizer - z.gather(1, index))[counted]
            nll += surprise.sum()
            total += (1 - epsilon) * surprise.sum() + epsilon * (normalizer[:, 0] - z.mean(1))[counted].sum()
            if gradient is not None:
                p = z.sub_(normalizer).exp_().sub_(epsilon / z.shape[1])
                p.scatter_add_(1, index, torch.full_like(normalizer, epsilon - 1))
                gradient[rows] = p.masked_fill_(~counted[:, None], 0)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient that the forward pass made."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None
