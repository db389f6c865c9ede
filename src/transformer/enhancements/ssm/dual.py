"""The scan of Mamba-2 by matrix products (state-space duality, arXiv 2405.21060 §6).

With one decay for a whole head the recurrence is linear attention with a decay: inside a chunk of C tokens

    y_t = Σ_{s≤t} (C_t·B_s) exp(Σ_{s<m≤t} Δ_m A) Δ_s x_s

is a masked product of matrices, and what lies before the chunk is met through the one state that the chunk found. The
products C_t·B_s are computed once for all heads of a group, and so is what they read of the state: the heads of a group
stand side by side, as columns of one matrix. Sums of log-decays are taken over each stretch by itself
(`attention/recurrence.py`), so strong decays lose nothing. Cost: O(t·(C + n)·e) for each head; memory O(t·(C + e)).
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.recurrence import CHUNK, Chunks, pair_decays


def dual_scan(
    x: Float[Tensor, "b t h e"],
    dt: Float[Tensor, "b t h"],
    A: Float[Tensor, "h 1"],
    B: Float[Tensor, "b t k n"],
    C: Float[Tensor, "b t k n"],
    runs: Int[Tensor, "b t"] | None,
    initial: Float[Tensor, "b h n e"],
    size: int = CHUNK,
) -> tuple[Float[Tensor, "b t h e"], Float[Tensor, "b h n e"]]:
    """The recurrence for heads with one decay each."""
    groups, width = B.shape[2], x.shape[3]
    v = rearrange(x * dt[..., None], "b t h e -> b h t e")
    chunks = Chunks.of(v, runs, size)
    v, log_decay = chunks.cut(v), chunks.cut(rearrange(dt * A[:, 0], "b t h -> b h t 1"))
    q, k = (chunks.cut(rearrange(y, "b t k n -> b k t n")) for y in (C, B))
    into, out_of, whole = chunks.decays(log_decay)
    weights = rearrange(pair_decays(log_decay) * chunks.pairs, "b (k g) c t s -> b k g c t s", k=groups)
    inside = rearrange((q @ k.mT)[:, :, None] * weights, "b k g c t s -> b (k g) c t s") @ v
    written = _apart(k.mT @ _together(v * out_of, groups), width)
    state, found = initial, []
    for chunk in range(written.shape[2]):
        found.append(state)
        state = state * whole[:, :, chunk] + written[:, :, chunk]
    read = _apart(q @ _together(torch.stack(found, dim=2), groups), width)
    return rearrange(chunks.join(inside + read * into), "b h t e -> b t h e"), state


def _together(x: Float[Tensor, "b h c t e"], groups: int) -> Float[Tensor, "b k c t _"]:
    """The heads of a group side by side."""
    return rearrange(x, "b (k g) c t e -> b k c t (g e)", k=groups)


def _apart(x: Float[Tensor, "b k c t _"], width: int) -> Float[Tensor, "b h c t e"]:
    """Undo `_together`."""
    return rearrange(x, "b k c t (g e) -> b (k g) c t e", e=width)
