"""The scan of Mamba on a CPU: chunk by chunk, with a backward pass of its own.

    S_t = exp(Δ_t A) ⊙ S_{t−1} + B_tᵀ (Δ_t x_t),   y_t = C_t S_t         for each channel, n numbers

Every entry of the state has a decay of its own, so no matrix product can take several tokens at once. What takes the
time otherwise is not the recurrence but what surrounds it: a graph of several nodes for each token, and tensors of
t · i · n numbers that are written and read again. Here

- all but the recurrence is computed for a chunk of tokens at once, in buffers that stay in the cache; the recurrence
  is one fused multiplication and addition for each token, in place;
- kept between the passes are the inputs and the state before each chunk; the backward pass computes the states of a
  chunk again, as the paper's kernel does (arXiv 2312.00752 §3.3.2), and walks the adjoint recurrence from the end,
      G_t = C_tᵀ dy_t + exp(Δ_{t+1} A) ⊙ G_{t+1},   d(Δ_t A) = G_t ⊙ exp(Δ_t A) ⊙ S_{t−1}

Channels are innermost in every buffer (`t b n i`), where they fill a processor's vectors. Memory: O(t·i) for inputs
and t/C states of i·n numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from .scan import continues

SHORTEST, LONGEST, BUFFER = 8, 32, 2**18
"""Bounds on the tokens of a chunk, and the numbers of a buffer that stays in the cache: how to compute, not what."""


def selective_scan(
    x: Float[Tensor, "b t h 1"],
    dt: Float[Tensor, "b t h"],
    A: Float[Tensor, "h n"],
    B: Float[Tensor, "b t 1 n"],
    C: Float[Tensor, "b t 1 n"],
    runs: Int[Tensor, "b t"] | None,
    initial: Float[Tensor, "b h n 1"],
    size: int | None = None,
) -> tuple[Float[Tensor, "b t h 1"], Float[Tensor, "b h n 1"]]:
    """The recurrence for heads one channel wide that all read one B and one C; `size`: tokens of a chunk."""
    size = size or max(SHORTEST, min(LONGEST, BUFFER // max(1, initial.numel())))
    kept = None if runs is None else continues(runs, x)
    out, state = _Selective.apply(  # type: ignore[no-untyped-call]
        x[..., 0], dt, A, B[:, :, 0], C[:, :, 0], kept, initial[..., 0], size
    )
    return out[..., None], state[..., None]


@dataclass
class _Chunk:
    """A chunk of the inputs, tokens first and channels last; `kept` is 0 where a document begins."""

    x: Float[Tensor, "t b 1 i"]
    dt: Float[Tensor, "t b 1 i"]
    A: Float[Tensor, "n i"]
    B: Float[Tensor, "t b n 1"]
    C: Float[Tensor, "t b n 1"]
    kept: Float[Tensor, "t b 1 1"] | None

    def decays(self) -> Float[Tensor, "t b n i"]:
        """exp(Δ A), and 0 where a document begins."""
        decay = (self.dt * self.A).exp_()
        return decay if self.kept is None else decay.mul_(self.kept)

    def states(
        self, decay: Float[Tensor, "t b n i"], state: Float[Tensor, "b n i"]
    ) -> Float[Tensor, "t b n i"]:
        """Every state of the chunk, from the one before it."""
        states = self.B * (self.dt * self.x)
        for here, factor in zip(states.unbind(), decay.unbind(), strict=True):
            state = here.addcmul_(factor, state)
        return states


def _cut(tensors: tuple[Tensor | None, ...], size: int) -> list[_Chunk]:
    """The inputs in chunks; those of a row are laid side by side, so that a step over time reads one piece."""
    x, dt, A, B, C, kept = tensors
    assert x is not None and dt is not None and A is not None and B is not None and C is not None
    wide = [torch.split(y.transpose(0, 1).contiguous()[:, :, None], size) for y in (x, dt)]
    narrow = [torch.split(y.transpose(0, 1).contiguous()[..., None], size) for y in (B, C)]
    masks = [None] * len(wide[0]) if kept is None else torch.split(kept.T[:, :, None, None], size)
    across = A.T.contiguous()
    parts = zip(*wide, *narrow, masks, strict=True)
    return [_Chunk(x, dt, across, B, C, mask) for x, dt, B, C, mask in parts]


class _Selective(torch.autograd.Function):
    """The two passes. Kept between them: the inputs, and the state before each chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        kept: Tensor | None,
        initial: Tensor,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        out = x.new_empty(x.shape[1], x.shape[0], 1, x.shape[2])
        state, found = initial.mT.contiguous(), []
        for chunk, y in zip(_cut((x, dt, A, B, C, kept), size), torch.split(out, size), strict=True):
            found.append(state)
            states = chunk.states(chunk.decays(), state)
            torch.matmul(chunk.C.mT, states, out=y)
            state = states[-1].clone()
        ctx.save_for_backward(x, dt, A, B, C, kept, torch.stack(found))
        ctx.size = size
        return out[:, :, 0].transpose(0, 1), state.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, last: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, found = ctx.saved_tensors
        x, size = inputs[0], ctx.size
        slopes = torch.split(slope.transpose(0, 1).contiguous()[:, :, None], size)
        carried, d_A = last.mT.contiguous(), torch.zeros_like(found[0, 0])
        parts: list[tuple[Tensor, ...]] = []
        chunks = _cut(tuple(inputs), size)
        for chunk, state, dy in zip(reversed(chunks), found.flip(0), reversed(slopes), strict=True):
            gradients, carried, more = _chunk_gradients(chunk, state, dy, carried)
            d_A += more
            parts.append(gradients)
        d_x, d_dt, d_B, d_C = (torch.cat(part).transpose(0, 1) for part in zip(*reversed(parts), strict=True))
        return d_x, d_dt, d_A.T.to(x.dtype), d_B, d_C, None, carried.mT, None


def _chunk_gradients(
    chunk: _Chunk,
    state: Float[Tensor, "b n i"],
    dy: Float[Tensor, "t b 1 i"],
    carried: Float[Tensor, "b n i"],
) -> tuple[tuple[Tensor, ...], Float[Tensor, "b n i"], Float[Tensor, "n i"]]:
    """The gradients of x, Δ, B and C in a chunk, of the state before it, and of A; `carried` is of the state after."""
    decay = chunk.decays()
    states = chunk.states(decay, state)
    d_C = (states * dy).sum(dim=-1)
    d_states = chunk.C * dy
    d_states[-1] += carried
    steps = d_states.unbind()
    for t in range(len(steps) - 1, 0, -1):
        steps[t - 1].addcmul_(decay[t], steps[t])
    carried = decay[0] * steps[0]
    written = chunk.dt * chunk.x
    d_B = (d_states * written).sum(dim=-1)
    d_written = torch.matmul(chunk.B.mT, d_states)
    # the gradient of Δ A: G ⊙ decay ⊙ the state before, written over the decays
    decay[1:] *= states[:-1]
    decay[0] *= state
    d_log = decay.mul_(d_states)
    d_A = (d_log * chunk.dt).sum(dim=(0, 1))
    d_dt = (d_log * chunk.A).sum(dim=2, keepdim=True) + d_written * chunk.x
    gradients = (d_written * chunk.dt)[:, :, 0], d_dt[:, :, 0], d_B, d_C
    return gradients, carried, d_A
