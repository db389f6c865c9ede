"""A shuffled order that is a function: no state to save, no list to keep.

`Permutation(n, seed)(i)` is the i-th element of a random permutation of 0 … n-1, computed directly by a
Feistel network over the smallest even number of bits that holds n, walking each cycle until it re-enters
0 … n-1 (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). It takes O(1) memory for any n and
is the same in every version of every library.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]

N_ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step from one number to the next
MIN_HALF = 3  # bits; with fewer, the permutations of a handful of elements are not equally likely


class Permutation:
    """A random permutation of 0 … length-1, one for each `seed` from 0 to 2^63 - 1."""

    def __init__(self, length: int, seed: int) -> None:
        if length < 1:
            raise ValueError(f"a permutation needs at least one element, got length {length}")
        self._length = length
        self._half = np.uint64(max(MIN_HALF, ((length - 1).bit_length() + 1) // 2))
        self._keys = _mix(np.uint64(seed) + GOLDEN * np.arange(1, N_ROUNDS + 1, dtype=np.uint64))

    def __call__(self, positions: Indices) -> Indices:
        """Return the elements at `positions` (each in 0 … length-1)."""
        values = self._encrypt(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self._length)):
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def all(self) -> Indices:
        """Return the whole permutation."""
        return self(np.arange(self._length))

    def _encrypt(self, values: Words) -> Words:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = values >> self._half, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << self._half) | right


def _mix(values: Words) -> Words:
    """Scramble bits by the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
