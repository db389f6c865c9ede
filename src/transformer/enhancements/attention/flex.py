"""Attention by PyTorch's flex_attention (Dong et al. 2024, arXiv 2412.05496): rules become part of a fused kernel.

Flex attention takes the mask as a function (batch, head, query, key) → seen and everything else done to a score as a
function of the same indices. Here the two functions are the `Mask`, over positions, and the soft cap with a
position's bias; heads are grouped by PyTorch; a sink is applied afterwards to the kernel's log-sum-exp L, since a
score more in the softmax multiplies every weight by σ(L − sink).

On a GPU PyTorch compiles one kernel for the two functions, which skips blocks that the mask empties; that needs
head widths from 16 on and a precision below float64. On a CPU (PyTorch 2.13) it is called uncompiled, computes the
whole matrix of scores, and has no backward pass; compiled it takes half a minute to start. What it cannot do the
definition does, and the log says so once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from ...base.sockets import Pairs, Scoring
from .routing import by_definition
from .tiles import autocast_inputs

Rule = Callable[..., Tensor]
NARROWEST = 16
"""The narrowest head that the kernels for GPUs take."""


def flex_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k s e"],
    v: Float[Tensor, "b k s _"],
    pairs: Pairs,
    scoring: Scoring,
) -> Float[Tensor, "b h t _"]:
    """Attention by rules. A query that sees no key gives zeros, as PyTorch's kernel does."""
    q, k, v = autocast_inputs(q, k, v)
    reason = _why_not(q, k, v, pairs, scoring)
    if reason is not None:
        return by_definition(q, k, v, pairs, scoring, kernel="flex", reason=reason)
    fused = q.device.type == "cuda" and not torch.compiler.is_compiling()
    call = _compiled() if fused else flex.flex_attention
    found = call(
        q,
        k,
        v,
        score_mod=_score_rule(pairs.bias, scoring.soft_cap),
        block_mask=_block_mask(pairs, len(q), q.device.type),
        scale=scoring.scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=None if scoring.sinks is None else flex.AuxRequest(lse=True),
    )
    return found if scoring.sinks is None else _beside_sinks(found[0], found[1].lse, scoring.sinks)


def _beside_sinks(
    out: Float[Tensor, "b h t e"], lse: Float[Tensor, "b h t"], sinks: Float[Tensor, " h"]
) -> Float[Tensor, "b h t e"]:
    """What is left of the weights when each head's sink has taken its part."""
    return out * torch.sigmoid(lse - sinks.to(lse.dtype)[None, :, None]).to(out.dtype)[..., None]


def _why_not(q: Tensor, k: Tensor, v: Tensor, pairs: Pairs, scoring: Scoring) -> str | None:
    """Why flex attention cannot compute this case; None if it can."""
    learns = torch.is_grad_enabled()
    given = [x for x in (q, k, v, pairs.bias, scoring.sinks) if x is not None]
    if scoring.dropout:
        return "flex attention has no dropout"
    if q.device.type == "cpu" and learns and any(x.requires_grad for x in given):
        return "flex attention has no backward pass on the CPU"
    if q.device.type == "cpu" and scoring.sinks is not None and torch.compiler.is_compiling():
        return "flex attention compiled for a CPU gives no log-sum-exp, which sinks need"
    if learns and pairs.bias is not None and pairs.bias.requires_grad:
        return "the gradient of a bias is not asked of flex attention"
    if q.device.type == "cuda" and (q.dtype == torch.float64 or min(q.shape[3], v.shape[3]) < NARROWEST):
        return "flex attention on a GPU takes no float64 and no head narrower than 16"
    return None


@cache
def _compiled() -> Any:
    """PyTorch's function, compiled: it is not fused otherwise."""
    return torch.compile(flex.flex_attention, dynamic=False)


def _score_rule(bias: Tensor | None, soft_cap: float | None) -> Rule | None:
    """What is done to a scaled product: the cap, then the bias."""
    if bias is None and soft_cap is None:
        return None

    @no_type_check  # PyTorch traces it, and cannot trace checks of shapes
    def rule(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if soft_cap is not None:
            score = soft_cap * torch.tanh(score / soft_cap)
        if bias is not None:
            score = score + bias[b if len(bias) > 1 else 0, h if bias.shape[1] > 1 else 0, t, s]
        return score

    return cast(Rule, rule)


def _block_mask(pairs: Pairs, batch: int, device: str) -> flex.BlockMask | None:
    """The mask as PyTorch wants it: which blocks are empty, which are whole, and the rule for the others."""
    mask, real = pairs.mask, pairs.keys.real
    documents = None if pairs.queries.documents is None else pairs.keys.documents
    if not mask.causal and mask.window is None and real is None and documents is None:
        return None
    t, s = pairs.queries.positions.shape[1], pairs.keys.positions.shape[1]
    return flex.create_block_mask(_mask_rule(pairs, batch), batch, None, t, s, device)


def _mask_rule(pairs: Pairs, batch: int) -> Rule:
    """The rule of `Mask.visible` for one query and one key."""

    def whole(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.expand(batch, -1)

    causal, window = pairs.mask.causal, pairs.mask.window
    at, of = pairs.queries.positions.expand(batch, -1), pairs.keys.positions.expand(batch, -1)
    real, mine, theirs = whole(pairs.keys.real), whole(pairs.queries.documents), whole(pairs.keys.documents)

    @no_type_check  # PyTorch traces it, and cannot trace checks of shapes
    def rule(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        distance = at[b, t] - of[b, s]
        seen = distance >= 0 if causal else distance == distance  # true everywhere
        if window is not None:
            seen = seen & (distance.abs() < window)
        if real is not None:
            seen = seen & real[b, s]
        if mine is not None and theirs is not None:
            seen = seen & (mine[b, t] == theirs[b, s])
        return seen

    return cast(Rule, rule)
