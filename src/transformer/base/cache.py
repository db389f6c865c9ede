"""Key-value caches: what attention keeps of the tokens so far, so that each is read once (arXiv 1911.02150 §2.3.2).

    k = [k_1 … k_s ; k_new],   v = [v_1 … v_s ; v_new]

There is one protocol. A mixer makes a cache (`initial_state`), adds the keys and values of each call's tokens to it
(`append`) and attends to all that it gets back. Which tokens those are is said by a `Layout`, so they may stand in any
order, and entries that are not real are not seen. There are three ways to keep them:

- growing: they are concatenated. The cache is as long as the tokens so far, and each step copies it: O(s);
- preallocated: memory for `capacity` tokens is taken once and written to: no copy, and no step needs more memory;
- a ring, for layers that see a window of w tokens only: w entries, the newest token in the place of the oldest.

A model's `initial_state` takes a `Storage`, which chooses. Attention modules are never told: whoever holds the states
exchanges them (`prepared`). Recurrent mixers keep a state of constant size, which is behind the same protocol but
for one thing: what they have read cannot be taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor

from .sockets import Layout

C = TypeVar("C")


@dataclass(frozen=True)
class Storage:
    """How keys and values are kept while decoding; no value depends on it.

    capacity: take memory for so many tokens of a row at once, padding counted; null grows with every call. rollback:
    how many of the last tokens can be taken back: layers with a window keep as many more than they need.
    """

    capacity: Annotated[int, Ge(1)] | None = None
    rollback: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"capacity must be at least 1 token, got {self.capacity}; null grows by itself")
        if self.rollback < 0:
            raise ValueError(f"rollback must be 0 or more tokens, got {self.rollback}")


GROWING = Storage()


class KeyValueCache:
    """The keys and values of the tokens so far, and where those stand. Grows by one append per call."""

    def __init__(self) -> None:
        self.keys: Float[Tensor, "b h s e"] | None = None
        self.values: Float[Tensor, "b _ s _"] | None = None
        self.layout: Layout | None = None

    def append(
        self, k: Float[Tensor, "b h t e"], v: Float[Tensor, "b _ t _"], layout: Layout
    ) -> tuple[Float[Tensor, "b h s e"], Float[Tensor, "b _ s _"], Layout]:
        """Add this call's tokens and return all of them."""
        if self.keys is not None and self.values is not None and self.layout is not None:
            k, v = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
            layout = self.layout.append(layout, batch=k.shape[0])
        self.keys, self.values, self.layout = k, v, layout
        return k, v, layout

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order."""
        if self.keys is not None and self.values is not None and self.layout is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
            self.layout = self.layout.rows(rows)

    def truncate(self, ends: Int[Tensor, "b 1"]) -> None:
        """Forget the tokens of each row at position `ends` and later."""
        if self.keys is not None and self.values is not None and self.layout is not None:
            self.layout, width = _before(self.layout, ends)
            self.keys, self.values = self.keys[:, :, :width], self.values[:, :, :width]

    def prepared(self, storage: Storage) -> KeyValueCache:
        """The empty cache that keeps the same as this empty one, as `storage` says."""
        return self if storage.capacity is None else PreallocatedCache(storage.capacity)


class PreallocatedCache(KeyValueCache):
    """Keys and values in memory that is taken once. For inference: what is written over has no gradient."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._memory: tuple[Tensor, Tensor] | None = None

    def append(
        self, k: Float[Tensor, "b h t e"], v: Float[Tensor, "b _ t _"], layout: Layout
    ) -> tuple[Float[Tensor, "b h s e"], Float[Tensor, "b _ s _"], Layout]:
        """Write this call's tokens behind the others and return all of them."""
        _refuse_gradients(k)
        first = 0 if self.layout is None else self.layout.positions.shape[1]
        last = first + k.shape[2]
        if last > self.capacity:
            raise ValueError(
                f"the cache was made for {self.capacity} tokens and is to hold {last}; "
                f"ask initial_state for a capacity of {last} or more"
            )
        if self._memory is None or len(self._memory[0]) != len(k):
            self._take(k, v)
        assert self._memory is not None
        self._memory[0][:, :, first:last], self._memory[1][:, :, first:last] = k, v
        self.keys, self.values = (memory[:, :, :last] for memory in self._memory)
        self.layout = layout if self.layout is None else self.layout.append(layout, batch=len(k))
        return self.keys, self.values, self.layout

    def _take(self, k: Tensor, v: Tensor) -> None:
        """Take memory for as many rows, and bring along what is kept."""
        kept = [x for x in (self.keys, self.values) if x is not None]
        memory = [x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (k, v)]
        for new, old in zip(memory, kept, strict=False):
            new[:, :, : old.shape[2]] = old
        self._memory = memory[0], memory[1]

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order."""
        super().select(rows)
        if self._memory is None or self.keys is None or self.values is None:
            return
        if len(rows) != len(self._memory[0]):
            self._memory = None  # memory for another number of rows is taken when there is something to write
            return
        width = self.keys.shape[2]
        self._memory[0][:, :, :width], self._memory[1][:, :, :width] = self.keys, self.values


class RingCache(KeyValueCache):
    """The keys and values of the last `slots` real tokens of each row: its nth token stands in slot n mod `slots`.

    Rows are counted each by itself, and padding is not kept, so that rows of unlike lengths need no more than others.
    For inference: what is written over has no gradient.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self._memory: tuple[Tensor, Tensor] | None = None
        self._places: tuple[Tensor, Tensor, Tensor] | None = (
            None  # of each slot: position, document, whether real
        )
        self._counts: Tensor = torch.zeros(1, 1, dtype=torch.long)  # real tokens so far, of each row

    def append(
        self, k: Float[Tensor, "b h t e"], v: Float[Tensor, "b _ t _"], layout: Layout
    ) -> tuple[Float[Tensor, "b h s e"], Float[Tensor, "b _ s _"], Layout]:
        """Add this call's tokens; return them, and those before them that they may need."""
        _refuse_gradients(k)
        if self._memory is None:
            self._take(k, v, layout)
        if k.shape[2] == 1:  # it takes the place of the oldest, which it does not see
            self._write(k, v, layout)
            return self._kept(layout)
        keys, values, before = self._kept(layout)
        both = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2), before.append(layout, batch=len(k))
        self._write(k, v, layout)
        return both

    def _take(self, k: Tensor, v: Tensor, layout: Layout) -> None:
        """Take memory, in which nothing is real yet, with one slot more for what is not to be kept."""
        memory = [x.new_zeros(*x.shape[:2], self.slots + 1, x.shape[3]) for x in (k, v)]
        empty = layout.positions.new_zeros(len(k), self.slots + 1)
        self._memory = memory[0], memory[1]
        self._places = empty, empty.clone(), empty.bool()
        self._counts = empty[:, :1].clone()

    def _kept(self, like: Layout) -> tuple[Tensor, Tensor, Layout]:
        """What the slots hold."""
        assert self._memory is not None and self._places is not None
        self.keys, self.values = (memory[:, :, : self.slots] for memory in self._memory)
        positions, documents, real = (place[:, : self.slots] for place in self._places)
        self.layout = Layout(positions, real, None if like.documents is None else documents)
        return self.keys, self.values, self.layout

    def _write(self, k: Tensor, v: Tensor, layout: Layout) -> None:
        """Put each row's last real tokens into their slots."""
        assert self._memory is not None and self._places is not None
        positions = layout.positions.expand(len(k), -1)
        real = torch.ones_like(positions).bool() if layout.real is None else layout.real
        number = self._counts + real.long().cumsum(1) - 1
        self._counts = self._counts + real.sum(1, keepdim=True)
        kept = real & (number >= self._counts - self.slots)
        slot = torch.where(kept, number % self.slots, self.slots)
        documents = torch.zeros_like(positions) if layout.documents is None else layout.documents
        for place, value in zip(self._places, (positions, documents.expand(len(k), -1), kept), strict=True):
            place.scatter_(1, slot, value)
        for memory, x in zip(self._memory, (k, v), strict=True):
            memory.scatter_(2, slot[:, None, :, None].expand(x.shape), x)

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows of the batch, in this order."""
        if self._memory is not None and self._places is not None:
            self._memory = self._memory[0][rows], self._memory[1][rows]
            self._places = self._places[0][rows], self._places[1][rows], self._places[2][rows]
            self._counts = self._counts[rows]

    def truncate(self, ends: Int[Tensor, "b 1"]) -> None:
        """Forget the tokens of each row at position `ends` and later."""
        if self._places is not None:
            positions, documents, real = self._places
            gone = real & (positions >= ends)
            self._places = positions, documents, real & ~gone
            self._counts = self._counts - gone[:, : self.slots].sum(1, keepdim=True)


def prepared(state: C, storage: Storage) -> C:
    """Return the empty state that keeps the same as `state`, as `storage` says.

    A state that knows one way only is left as it is. ValueError if tokens are to be taken back and it cannot.
    """
    if storage.rollback and state is not None and not hasattr(state, "truncate"):
        raise ValueError(
            f"a {type(state).__name__} cannot take back what it has read, so this model cannot be used with "
            f"rollback {storage.rollback}; generate without a draft"
        )
    change = getattr(state, "prepared", None)
    return state if change is None else change(storage)


def _before(layout: Layout, ends: Int[Tensor, "b 1"]) -> tuple[Layout, int]:
    """The part of a layout at positions below `ends`, and how many columns it still has."""
    kept = layout.positions < ends
    kept = kept if layout.real is None else kept & layout.real
    columns = kept.any(0).nonzero()
    width = int(columns[-1]) + 1 if len(columns) else 0
    real = None if layout.real is None and bool(kept[:, :width].all()) else kept[:, :width]
    documents = None if layout.documents is None else layout.documents[:, :width]
    return Layout(layout.positions[:, :width], real, documents), width


def _refuse_gradients(k: Tensor) -> None:
    """Refuse to write over what a gradient would be computed from."""
    if k.requires_grad:
        raise ValueError(
            "a preallocated cache has no gradients, for it is written over; decode under torch.no_grad, "
            "or let the cache grow"
        )
