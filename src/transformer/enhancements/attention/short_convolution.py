"""Short causal convolution: each channel is mixed with its own last few values (H3: arXiv 2212.14052 §3).

    y_t = Σ_{j<w} weight_j ⊙ x_{t−j}       w = 4, and Mamba adds a bias

A recurrent mixer compares neighbouring tokens with it, which its state alone does badly. "Last" counts real tokens of
the same document: padding is passed over, wherever it stands, and before a document's first token there is nothing (0).
While decoding, the last w − 1 inputs are kept. Cost: w multiplications per channel and token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrence import RecurrentState, Segments


class ShortConvolution(nn.Module):
    """A depthwise causal convolution over the last `size` tokens.

    weight[:, j] belongs to the token j steps back, so the order is the reverse of `nn.Conv1d`'s.
    """

    def __init__(self, width: int, size: int = 4, bias: bool = False) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(width, size).uniform_(-(size**-0.5), size**-0.5))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-(size**-0.5), size**-0.5)) if bias else None

    def forward(
        self, x: Float[Tensor, "b t i"], segments: Segments, state: RecurrentState | None = None
    ) -> Float[Tensor, "b t i"]:
        """Mix each token with those before it; the state's last inputs are read and replaced."""
        length, before = x.shape[1], self.size - 1
        kept = {} if state is None else state.tensors
        recent = kept["recent"] if "recent" in kept else x.new_zeros(len(x), before, x.shape[2])
        order, place = _real_first(segments, x)
        inputs = torch.cat([recent.to(x.dtype), _take(x, order)], dim=1).to(
            torch.promote_types(x.dtype, self.weight.dtype)
        )
        runs = None if segments.runs is None else F.pad(_take(segments.runs, order), (before, 0))
        out = self.step(inputs) if length == 1 and runs is None else self.mix(inputs, runs)
        if state is not None:
            state.tensors["recent"] = _last(inputs, runs, segments, before)
        return _take(out, place).to(x.dtype)

    def mix(self, inputs: Float[Tensor, "b _ i"], runs: Int[Tensor, "b _"] | None) -> Float[Tensor, "b t i"]:
        """Add up what stands j steps back, for all tokens at once; the first `size` − 1 inputs only are looked at."""
        before = self.size - 1
        length = inputs.shape[1] - before
        out = (
            torch.zeros_like(inputs[:, before:])
            if self.bias is None
            else self.bias.expand_as(inputs[:, before:])
        )
        for j in range(self.size):
            back = slice(before - j, before - j + length)
            out = torch.addcmul(out, _same_run(inputs, runs, back, before), self.weight[:, j])
        return out

    def step(self, inputs: Float[Tensor, "b _ i"]) -> Float[Tensor, "b 1 i"]:
        """The same for one token, in few operations: in decoding, calling them is what costs."""
        out = (inputs * self.weight.flip(1).T).sum(dim=1, keepdim=True)
        return out if self.bias is None else out + self.bias


def _real_first(
    segments: Segments, x: Float[Tensor, "b t i"]
) -> tuple[Int[Tensor, "b t"] | None, Int[Tensor, "b t"] | None]:
    """The index that moves each row's real tokens to its front, and the one that puts them back; None if all are."""
    if segments.real is None:
        return None, None
    order = torch.argsort(~segments.real, dim=1, stable=True)
    return order, (segments.real.long().cumsum(dim=1) - 1).clamp(min=0)


def _take(x: Tensor, index: Int[Tensor, "b t"] | None) -> Tensor:
    if index is None:
        return x
    return x.gather(1, index if x.ndim == 2 else index[..., None].expand(-1, -1, x.shape[-1]))


def _same_run(
    inputs: Float[Tensor, "b _ i"], runs: Int[Tensor, "b _"] | None, back: slice, before: int
) -> Float[Tensor, "b t i"]:
    """The tokens looked back at, zero where they stand in another document."""
    seen = inputs[:, back]
    return seen if runs is None else seen * (runs[:, back] == runs[:, before:])[..., None].to(seen.dtype)


def _last(
    inputs: Float[Tensor, "b _ i"], runs: Int[Tensor, "b _"] | None, segments: Segments, before: int
) -> Float[Tensor, "b _ i"]:
    """The last real inputs of each row, zeros in place of those of a document that has ended."""
    length = inputs.shape[1] - before
    if segments.real is None:
        last, numbers = inputs[:, length:].clone(), None if runs is None else runs[:, length:]
    else:
        index = segments.real.sum(dim=1)[:, None] + torch.arange(before, device=inputs.device)
        last, numbers = _take(inputs, index), None if runs is None else _take(runs, index)
    return last if numbers is None else last * (numbers == numbers[:, -1:])[..., None].to(last.dtype)
