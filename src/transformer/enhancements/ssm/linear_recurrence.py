"""The recurrence of a gated linear recurrent unit, whose state is as wide as its input, and three forms of it.

    h_t = a_t ⊙ h_{t−1} + u_t          0 ≤ a_t ≤ 1, for each channel by itself

It is no case of `scan.py`, where a step Δ both fades the state and scales what is written: here these are two numbers,
and dividing u by a step that is nearly 0 would lose digits. All forms compute the same function:

- `sequential_recurrence` is the definition, token by token; one step of it decodes;
- `lean_recurrence` trains on a CPU: one multiplication and addition for each token, in place, and a backward pass that
  walks the adjoint recurrence from the end. Kept between the passes are a and h.
      G_t = dh_t + a_{t+1} ⊙ G_{t+1},   du_t = G_t,   da_t = G_t ⊙ h_{t−1}
- `associative_recurrence` takes log₂ t steps, each for all tokens at once: for GPUs, and for a compiler to fuse.

Cost: O(t·i) each. Nothing is divided and no sum of logarithms is taken, so nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention.recurrence import RecurrentState, Segments
from .scan import continues, prefix

Recurrence: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A form: a, u and the state before them → every state, and the last one."""


def sequential_recurrence(
    a: Float[Tensor, "b t i"], u: Float[Tensor, "b t i"], initial: Float[Tensor, "b i"]
) -> tuple[Float[Tensor, "b t i"], Float[Tensor, "b i"]]:
    """The definition, token by token."""
    state, states = initial, []
    for decay, written in zip(a.unbind(dim=1), u.unbind(dim=1), strict=True):
        state = torch.addcmul(written, decay, state)
        states.append(state)
    return torch.stack(states, dim=1), state


def associative_recurrence(
    a: Float[Tensor, "b t i"], u: Float[Tensor, "b t i"], initial: Float[Tensor, "b i"]
) -> tuple[Float[Tensor, "b t i"], Float[Tensor, "b i"]]:
    """The same in log₂ t steps."""
    first = torch.addcmul(u[:, :1], a[:, :1], initial[:, None])
    begun = torch.cat([first, u[:, 1:]], dim=1)
    states = prefix(a[..., None, None], begun[..., None, None])[..., 0, 0]
    return states, states[:, -1]


def lean_recurrence(
    a: Float[Tensor, "b t i"], u: Float[Tensor, "b t i"], initial: Float[Tensor, "b i"]
) -> tuple[Float[Tensor, "b t i"], Float[Tensor, "b i"]]:
    """The same token by token, in place, with a backward pass of its own."""
    return _Lean.apply(a, u, initial)  # type: ignore[no-any-return, no-untyped-call]


class _Lean(torch.autograd.Function):
    """The two passes; tokens come first in every buffer, so that a step over time reads one piece."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        decays, states, state = a.transpose(0, 1).contiguous(), _tokens_first(u), initial
        for here, decay in zip(states.unbind(), decays.unbind(), strict=True):
            state = here.addcmul_(decay, state)
        ctx.save_for_backward(decays, states, initial)
        return states.transpose(0, 1), state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        decays, states, initial = ctx.saved_tensors
        slopes = _tokens_first(slope)
        slopes[-1] += last
        steps, factors = slopes.unbind(), decays.unbind()
        for t in range(len(steps) - 1, 0, -1):
            steps[t - 1].addcmul_(factors[t], steps[t])
        d_a = slopes * torch.cat([initial[None], states[:-1]])
        return d_a.transpose(0, 1), slopes.transpose(0, 1), factors[0] * steps[0]


def _tokens_first(x: Float[Tensor, "b t i"]) -> Float[Tensor, "t b i"]:
    """A copy to compute in."""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format)


def _best(u: Float[Tensor, "b t i"]) -> Recurrence:
    """Choose by device and length. A loop over tokens leaves a GPU waiting, and no compiler follows a pass of ours."""
    if u.shape[1] == 1:
        return sequential_recurrence
    looping = u.device.type == "cpu" and not torch.compiler.is_compiling()
    return lean_recurrence if looping else associative_recurrence


def run_recurrence(
    log_decay: Float[Tensor, "b t i"],
    u: Float[Tensor, "b t i"],
    segments: Segments,
    state: RecurrentState | None,
) -> Float[Tensor, "b t i"]:
    """Run the recurrence over real tokens only, from the state and back to it; its numbers are float32 or better.

    Padding writes nothing and fades nothing; a document begins with an empty state, by a factor that is exactly 0.
    """
    with torch.autocast(u.device.type, enabled=False):
        if segments.real is not None:
            padding = ~segments.real[:, :, None]
            log_decay, u = log_decay.masked_fill(padding, 0.0), u.masked_fill(padding, 0.0)
        a = log_decay.exp()
        if segments.runs is not None:
            a = a * continues(segments.runs, a)[:, :, None]
        kept = {} if state is None else state.tensors
        initial = kept["states"] if "states" in kept else u.new_zeros(len(u), u.shape[2])
        states, last = _best(u)(a, u, initial) if u.shape[1] else (u, initial)
    if state is not None:
        state.tensors["states"] = last
    return states
