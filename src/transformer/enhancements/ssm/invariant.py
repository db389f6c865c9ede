"""The scan of S4D, in which no token has a say: the recurrence is a convolution.

    y_t = Re Σ_{s≤t} K_{t−s} x_s + Re C Ā^{t+1} S_{−1},   K_j = C Ā^j B̄        for each channel       (arXiv 2206.11893)

- `fft_scan` convolves by the fast Fourier transform, as the paper does: O(t log t), with all powers of Ā in memory.
  A transform mixes all tokens, so rounding errors, about 1e-7 of the largest output in float32, reach backwards in
  time: its outputs are causal only up to these;
- `toeplitz_scan` convolves inside chunks by a lower-triangular matrix for each channel, and across them through the
  state: O(t·(C + n)), no power beyond C, and causal to the last bit.

Both need every token to be real and of one document.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32
"""Tokens of a chunk: how to compute, not what."""


def is_invariant(dt: Tensor, B: Tensor, C: Tensor, runs: Tensor | None) -> bool:
    """Whether nothing of the recurrence depends on the token or the row."""
    return runs is None and all(y.shape[0] == y.shape[1] == 1 for y in (dt, B, C))


def fft_scan(
    x: Float[Tensor, "b t h 1"],
    dt: Float[Tensor, "1 1 #h"],
    A: Complex[Tensor, "h n"],
    B: Complex[Tensor, "1 1 h n"],
    C: Complex[Tensor, "1 1 h n"],
    runs: Int[Tensor, "b t"] | None,
    initial: Complex[Tensor, "b h n 1"],
) -> tuple[Float[Tensor, "b t h 1"], Complex[Tensor, "b h n 1"]]:
    """The recurrence as one convolution."""
    length, inputs = x.shape[1], rearrange(x * dt[..., None], "b t h 1 -> b h t")
    powers = _powers(dt, A, length + 1)
    kernel = torch.einsum("hn,hnt->ht", B[0, 0] * C[0, 0], powers[:, :, :length]).real
    transformed = torch.fft.rfft(inputs, 2 * length) * torch.fft.rfft(kernel, 2 * length)
    out = torch.fft.irfft(transformed, 2 * length)[..., :length]
    before = torch.einsum("bhn,hnt->bht", C[0] * initial[..., 0], powers[:, :, 1:]).real
    written = torch.einsum("bht,hnt->bhn", inputs.to(A.dtype), powers[:, :, :length].flip(2))
    state = initial[..., 0] * powers[:, :, length] + B[0] * written
    return rearrange(out + before, "b h t -> b t h 1"), state[..., None]


def toeplitz_scan(
    x: Float[Tensor, "b t h 1"],
    dt: Float[Tensor, "1 1 #h"],
    A: Complex[Tensor, "h n"],
    B: Complex[Tensor, "1 1 h n"],
    C: Complex[Tensor, "1 1 h n"],
    runs: Int[Tensor, "b t"] | None,
    initial: Complex[Tensor, "b h n 1"],
    size: int = CHUNK,
) -> tuple[Float[Tensor, "b t h 1"], Complex[Tensor, "b h n 1"]]:
    """The recurrence chunk by chunk; what is left over is a smaller chunk."""
    length = x.shape[1]
    size = min(size, length)
    rest = length % size
    inputs = rearrange(x[:, : length - rest] * dt[..., None], "b (c t) h 1 -> h b c t", t=size)
    powers = _powers(dt, A, size + 1)
    write = B[0, 0, :, :, None] * powers[:, :, :size].flip(2)
    written = torch.einsum("hbct,hnt->cbhn", inputs.to(A.dtype), write)
    state, found = initial[..., 0], []
    for chunk in written:
        found.append(state)
        state = state * powers[:, :, size] + chunk
    read = C[0, 0, :, :, None] * powers[:, :, 1:]
    before = torch.einsum("cbhn,hnt->hbct", torch.stack(found), read).real
    kernel = torch.einsum("hn,hnt->ht", B[0, 0] * C[0, 0], powers[:, :, :size]).real
    out = rearrange(inputs @ _toeplitz(kernel)[:, None] + before, "h b c t -> b (c t) h 1")
    if not rest:
        return out, state[..., None]
    last, final = toeplitz_scan(x[:, length - rest :], dt, A, B, C, runs, state[..., None], rest)
    return torch.cat([out, last], dim=1), final


def _powers(dt: Float[Tensor, "1 1 #h"], A: Complex[Tensor, "h n"], count: int) -> Complex[Tensor, "h n t"]:
    """Ā⁰, Ā¹, … for each state, each from its logarithm, so that no error adds up."""
    steps = torch.arange(count, dtype=dt.dtype, device=dt.device)
    return ((dt[0, 0, :, None] * A)[..., None] * steps).exp()


def _toeplitz(kernel: Float[Tensor, "h t"]) -> Float[Tensor, "h t t"]:
    """The matrix that convolves a row: entry (s, t) is K_{t−s}, and 0 where s > t."""
    size = kernel.shape[1]
    padded = F.pad(kernel, (size - 1, 0))
    index = torch.arange(size, device=kernel.device)
    return padded[:, index - index[:, None] + size - 1]
