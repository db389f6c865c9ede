"""Randomness as a function of where we are, so that there is never a generator state to save."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *parts: int | str) -> int:
    """Return a 63-bit seed that depends only on `seed` and `parts`.

    The same arguments give the same seed in every process and version; changing any of them gives an
    unrelated one. `derive_seed(7, "dropout", step)` is how a step's randomness survives a restart.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
