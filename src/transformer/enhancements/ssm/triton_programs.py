"""The programs of `triton_scan`, in Triton: Mamba's recurrence forwards, and its adjoint backwards.

Each is one block of channels of one row, which walks over time with its states in a GPU's registers. All tensors are
contiguous and float32: x, Δ `[b t i]`, A `[i n]`, B and C `[b t n]`, kept `[b t]`, states `[b i n]`. Without Triton
this module can still be imported, and its functions cannot be called.
"""

# Triton compiles these functions from their text: arguments are pointers, numbers and, in capitals, constants.
from __future__ import annotations

from typing import Any, no_type_check

try:
    import triton
    import triton.language as tl
except ImportError:  # the optional dependency `gpu`
    triton = tl = None

compiler: Any = triton
"""Triton, or None where it is not installed."""


def _as_it_is(function: Any) -> Any:
    return function


jit = _as_it_is if compiler is None else compiler.jit


# fmt: off
@jit
@no_type_check
def token(
    x, dt, B, kept, a, at, columns, inside, n, states, i, PACKED: tl.constexpr, N: tl.constexpr
):
    """What the token at place `at` of all rows brings: its step, value and key, and how states fade."""
    step = tl.load(dt + at * i + columns, mask=inside, other=0.0)
    value = tl.load(x + at * i + columns, mask=inside, other=0.0)
    key = tl.load(B + at * N + n, mask=states, other=0.0)
    decay = tl.exp(step[:, None] * a)
    if PACKED:
        decay = decay * tl.load(kept + at)
    return step, value, key, decay


@jit
@no_type_check
def forwards(
    x, dt, A, B, C, kept, initial, out, found, last, t, i,
    PACKED: tl.constexpr, N: tl.constexpr, WIDE_N: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):
    """Outputs, the state before each chunk, and the last one."""
    row, n = tl.program_id(1).to(tl.int64), tl.arange(0, WIDE_N)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, states = columns < i, n < N
    both = inside[:, None] & states[None, :]
    at = columns[:, None] * N + n[None, :]
    a = tl.load(A + at, mask=both, other=0.0)
    h = tl.load(initial + row * i * N + at, mask=both, other=0.0)
    for s in range(t):
        if s % CHUNK == 0:
            tl.store(found + (row * tl.cdiv(t, CHUNK) + s // CHUNK) * i * N + at, h, mask=both)
        step, value, key, decay = token(
            x, dt, B, kept, a, row * t + s, columns, inside, n, states, i, PACKED, N
        )
        query = tl.load(C + (row * t + s) * N + n, mask=states, other=0.0)
        h = decay * h + (step * value)[:, None] * key[None, :]
        tl.store(out + (row * t + s) * i + columns, tl.sum(h * query[None, :], 1), mask=inside)
    tl.store(last + row * i * N + at, h, mask=both)


@jit
@no_type_check
def replay(
    x, dt, B, kept, a, h, states_of, first, count, columns, inside, n, states, both, i,
    PACKED: tl.constexpr, N: tl.constexpr,
):
    """The states of a chunk once more, from the one before it, into memory of their own."""
    tl.store(states_of, h, mask=both)
    for j in range(count):
        step, value, key, decay = token(x, dt, B, kept, a, first + j, columns, inside, n, states, i, PACKED, N)
        h = decay * h + (step * value)[:, None] * key[None, :]
        tl.store(states_of + (j + 1) * i * N, h, mask=both)


@jit
@no_type_check
def backwards(
    x, dt, A, B, C, kept, found, slope, d_last, scratch, d_x, d_dt, d_A, d_B, d_C, d_initial, t, i,
    PACKED: tl.constexpr, N: tl.constexpr, WIDE_N: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):
    """Gradients from the end, chunk by chunk, whose states are computed again; of B and C for each block by itself."""
    row, block, n = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.arange(0, WIDE_N)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside, states = columns < i, n < N
    both = inside[:, None] & states[None, :]
    at = columns[:, None] * N + n[None, :]
    a = tl.load(A + at, mask=both, other=0.0)
    g = tl.load(d_last + row * i * N + at, mask=both, other=0.0)
    total = tl.zeros([BLOCK, WIDE_N], tl.float32)
    chunks = tl.cdiv(t, CHUNK)
    for back in range(chunks):
        chunk = chunks - 1 - back
        begin, count = chunk * CHUNK, tl.minimum(CHUNK, t - chunk * CHUNK)
        h = tl.load(found + (row * chunks + chunk) * i * N + at, mask=both, other=0.0)
        states_of = scratch + row * (CHUNK + 1) * i * N + at
        replay(x, dt, B, kept, a, h, states_of, row * t + begin, count, columns, inside, n, states, both, i, PACKED, N)
        tl.debug_barrier()
        for down in range(count):
            j, s = count - 1 - down, begin + count - 1 - down
            step, value, key, decay = token(x, dt, B, kept, a, row * t + s, columns, inside, n, states, i, PACKED, N)
            query = tl.load(C + (row * t + s) * N + n, mask=states, other=0.0)
            dy = tl.load(slope + (row * t + s) * i + columns, mask=inside, other=0.0)
            previous = tl.load(states_of + j * i * N, mask=both, other=0.0)
            h = tl.load(states_of + (j + 1) * i * N, mask=both, other=0.0)
            g = g + dy[:, None] * query[None, :]
            shared = ((block * tl.num_programs(1) + row) * t + s) * N + n
            tl.store(d_C + shared, tl.sum(h * dy[:, None], 0), mask=states)
            tl.store(d_B + shared, tl.sum(g * (step * value)[:, None], 0), mask=states)
            written = tl.sum(g * key[None, :], 1)
            d_log = g * decay * previous
            total += d_log * step[:, None]
            tl.store(d_dt + (row * t + s) * i + columns, tl.sum(d_log * a, 1) + written * value, mask=inside)
            tl.store(d_x + (row * t + s) * i + columns, written * step, mask=inside)
            g = g * decay
        tl.debug_barrier()
    tl.store(d_A + row * i * N + at, total, mask=both)
    tl.store(d_initial + row * i * N + at, g, mask=both)
