"""The programs of `triton_flash`, in Triton: a forward pass and the two halves of a backward pass.

Each is one block of queries, or of keys, of one head; `tile` names what a block sees of the other side. All tensors
are contiguous: queries `[b h t e]`, keys `[b k s e]`, values `[b k s v]`, positions, real and documents `[b t]` or
`[b s]`. Products are added up in float32, and of float32 inputs are computed in full precision, not in TF32. Without
Triton this module can still be imported, and its functions cannot be called.
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


@jit
@no_type_check
def load_rows(pointer, rows, columns, n_rows, n_columns):
    """Some rows of a matrix; zeros beyond its end."""
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(pointer + rows[:, None] * n_columns + columns[None, :], mask=inside, other=0.0)


@jit
@no_type_check
def store_rows(pointer, x, rows, columns, n_rows, n_columns):
    """Write some rows of a matrix."""
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    pointers = pointer + rows[:, None] * n_columns + columns[None, :]
    tl.store(pointers, x.to(pointer.dtype.element_ty), mask=inside)


# fmt: off
@jit
@no_type_check
def visible(
    q_at, k_at, real, q_doc, k_doc, batch, rows, columns, t, s, window,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr,
):
    """Which of these keys each of these queries sees: `Mask.visible` for a tile."""
    mine = tl.load(q_at + batch * t + rows, mask=rows < t, other=0)
    theirs = tl.load(k_at + batch * s + columns, mask=columns < s, other=0)
    distance = mine[:, None] - theirs[None, :]
    seen = (rows < t)[:, None] & (columns < s)[None, :]
    if CAUSAL:
        seen = seen & (distance >= 0)
    if WINDOWED:
        seen = seen & (distance < window) & (-distance < window)
    if PADDED:
        seen = seen & (tl.load(real + batch * s + columns, mask=columns < s, other=0) != 0)[None, :]
    if PACKED:
        mine = tl.load(q_doc + batch * t + rows, mask=rows < t, other=0)
        theirs = tl.load(k_doc + batch * s + columns, mask=columns < s, other=0)
        seen = seen & (mine[:, None] == theirs[None, :])
    return seen


@jit
@no_type_check
def products(q, k, scale, cap, CAPPED: tl.constexpr):
    """The scaled and capped products of a tile; tanh(x) = 2σ(2x) − 1."""
    x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if CAPPED:
        x = cap * (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0)
    return x


@jit
@no_type_check
def forwards(
    q, k, v, out, lse, sinks, q_at, k_at, real, q_doc, k_doc, scale, cap, window, t, s, h, g,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr,
    ORDERED: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr, E: tl.constexpr, V: tl.constexpr,
    WIDE_E: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """One block of queries of one head, over all blocks of keys that it may see."""
    first, head = tl.program_id(0) * ROWS, tl.program_id(1).to(tl.int64)
    batch, shared = head // h, (head // h) * (h // g) + (head % h) // g
    rows, e, c = first + tl.arange(0, ROWS), tl.arange(0, WIDE_E), tl.arange(0, WIDE_V)
    queries = load_rows(q + head * t * E, rows, e, t, E)
    top, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    if SINKS:
        top, total = total + tl.load(sinks + head % h).to(tl.float32), total + 1.0
    values = tl.zeros([ROWS, WIDE_V], tl.float32)
    begin, end = 0, s
    if ORDERED and WINDOWED:
        begin, end = tl.maximum(0, first - window + 1) // COLUMNS * COLUMNS, tl.minimum(s, first + ROWS + window)
    if ORDERED and CAUSAL:
        end = tl.minimum(s, first + ROWS)
    for start in range(begin, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        seen = visible(q_at, k_at, real, q_doc, k_doc, batch, rows, columns, t, s, window,
                       CAUSAL, WINDOWED, PADDED, PACKED)
        if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
            keys = load_rows(k + shared * s * E, columns, e, s, E)
            scores = tl.where(seen, products(queries, keys, scale, cap, CAPPED), float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf is no number
            weights, correction = tl.exp(scores - base[:, None]), tl.exp(top - base)
            total = total * correction + tl.sum(weights, 1)
            taken = load_rows(v + shared * s * V, columns, c, s, V)
            values = values * correction[:, None] + tl.dot(weights.to(taken.dtype), taken, input_precision="ieee")
            top = higher
    safe = tl.where(total == 0, 1.0, total)
    store_rows(out + head * t * V, values / safe[:, None], rows, c, t, V)
    tl.store(lse + head * t + rows, tl.where(total == 0, float("inf"), top + tl.log(safe)), mask=rows < t)


@jit
@no_type_check
def tile_gradient(queries, keys, values, d_out, lse, delta, seen, scale, cap, CAPPED: tl.constexpr):
    """The weights of a tile, computed again from L, and the gradient by its products."""
    scores = products(queries, keys, scale, cap, CAPPED)
    weights = tl.where(seen, tl.exp(scores - lse[:, None]), 0.0)
    d_weights = tl.dot(d_out, tl.trans(values), input_precision="ieee")
    d_scores = weights * (d_weights - delta[:, None])
    if CAPPED:
        d_scores = d_scores * (1.0 - (scores / cap) * (scores / cap))
    return weights, d_scores


@jit
@no_type_check
def backward_queries(
    q, k, v, d_out, lse, delta, d_q, q_at, k_at, real, q_doc, k_doc, scale, cap, window, t, s, h, g,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr,
    ORDERED: tl.constexpr, CAPPED: tl.constexpr, E: tl.constexpr, V: tl.constexpr,
    WIDE_E: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """The gradient of one block of queries of one head: a sum over the keys that it may see."""
    first, head = tl.program_id(0) * ROWS, tl.program_id(1).to(tl.int64)
    batch, shared = head // h, (head // h) * (h // g) + (head % h) // g
    rows, e, c = first + tl.arange(0, ROWS), tl.arange(0, WIDE_E), tl.arange(0, WIDE_V)
    queries, slope = load_rows(q + head * t * E, rows, e, t, E), load_rows(d_out + head * t * V, rows, c, t, V)
    log_sum = tl.load(lse + head * t + rows, mask=rows < t, other=float("inf"))
    mean = tl.load(delta + head * t + rows, mask=rows < t, other=0.0)
    gradient = tl.zeros([ROWS, WIDE_E], tl.float32)
    begin, end = 0, s
    if ORDERED and WINDOWED:
        begin, end = tl.maximum(0, first - window + 1) // COLUMNS * COLUMNS, tl.minimum(s, first + ROWS + window)
    if ORDERED and CAUSAL:
        end = tl.minimum(s, first + ROWS)
    for start in range(begin, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        seen = visible(q_at, k_at, real, q_doc, k_doc, batch, rows, columns, t, s, window,
                       CAUSAL, WINDOWED, PADDED, PACKED)
        if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
            keys = load_rows(k + shared * s * E, columns, e, s, E)
            values = load_rows(v + shared * s * V, columns, c, s, V)
            _, d_scores = tile_gradient(queries, keys, values, slope, log_sum, mean, seen, scale, cap, CAPPED)
            gradient += tl.dot(d_scores.to(keys.dtype), keys, input_precision="ieee")
    store_rows(d_q + head * t * E, gradient * scale, rows, e, t, E)


@jit
@no_type_check
def backward_keys(
    q, k, v, d_out, lse, delta, d_k, d_v, q_at, k_at, real, q_doc, k_doc, scale, cap, window, t, s, h, g,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr,
    ORDERED: tl.constexpr, CAPPED: tl.constexpr, E: tl.constexpr, V: tl.constexpr,
    WIDE_E: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """The gradients of one block of keys and values: sums over the queries of all heads of the group."""
    first, shared = tl.program_id(0) * COLUMNS, tl.program_id(1).to(tl.int64)
    batch = shared // (h // g)
    columns, e, c = first + tl.arange(0, COLUMNS), tl.arange(0, WIDE_E), tl.arange(0, WIDE_V)
    keys, values = load_rows(k + shared * s * E, columns, e, s, E), load_rows(v + shared * s * V, columns, c, s, V)
    by_key, by_value = tl.zeros([COLUMNS, WIDE_E], tl.float32), tl.zeros([COLUMNS, WIDE_V], tl.float32)
    begin, end = 0, t
    if ORDERED and WINDOWED:
        begin, end = tl.maximum(0, first - window + 1) // ROWS * ROWS, tl.minimum(t, first + COLUMNS + window)
    if ORDERED and CAUSAL:
        begin = first // ROWS * ROWS
    for head in range(shared * g, shared * g + g):  # heads of a group are neighbours
        for start in range(begin, end, ROWS):
            rows = start + tl.arange(0, ROWS)
            seen = visible(q_at, k_at, real, q_doc, k_doc, batch, rows, columns, t, s, window,
                           CAUSAL, WINDOWED, PADDED, PACKED)
            if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
                queries = load_rows(q + head * t * E, rows, e, t, E)
                slope = load_rows(d_out + head * t * V, rows, c, t, V)
                log_sum = tl.load(lse + head * t + rows, mask=rows < t, other=float("inf"))
                mean = tl.load(delta + head * t + rows, mask=rows < t, other=0.0)
                weights, d_scores = tile_gradient(
                    queries, keys, values, slope, log_sum, mean, seen, scale, cap, CAPPED)
                by_value += tl.dot(tl.trans(weights.to(slope.dtype)), slope, input_precision="ieee")
                by_key += tl.dot(tl.trans(d_scores.to(queries.dtype)), queries, input_precision="ieee")
    store_rows(d_k + shared * s * E, by_key * scale, columns, e, s, E)
    store_rows(d_v + shared * s * V, by_value, columns, c, s, V)
# fmt: on
