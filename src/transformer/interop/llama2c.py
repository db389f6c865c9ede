"""A LLaMA in the file format of llama2.c (Karpathy 2023), its float32 "version 0".

    file = 7 little-endian int32 (d_model, d_ff, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len)
           | float32 tensors, all layers of a kind together
           | two tables of rotary cosines and sines, which are not read
           | the map to logits, if vocab_size is negative: else it is the embedding's

The format's rotary pairs are neighbours, (2j, 2j + 1); the rows of W^Q and W^K are reordered for ours, (j, j + e/2).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..enhancements.position.rope import to_half
from ..models import DecoderOnly, build, llama
from ..training.strict_json import CheckpointError, regular_size

HEADER = struct.Struct("<7i")
NAMES = ("d_model", "d_ff", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
Shapes = dict[str, tuple[int, ...]]


def load_llama2c(path: str | Path) -> DecoderOnly:
    """Return the model of a file, in eval mode and on the CPU.

    ValueError for a file whose size is not what its header says, or whose weights are not finite.
    """
    path = Path(path)
    sizes, tied = _read_header(path)
    shapes = _shapes(sizes, tied)
    weights: dict[str, Tensor] = {}
    with path.open("rb") as file:
        file.seek(HEADER.size)
        for name, shape in shapes.items():
            flat = np.frombuffer(file.read(4 * math.prod(shape)), "<f4").astype(np.float32)
            weights[name] = torch.from_numpy(flat.reshape(shape))
            if not torch.isfinite(weights[name]).all():
                raise CheckpointError(f"{path}: the tensor {name!r} has values that are not finite")
    try:
        settings: dict[str, Any] = {**sizes, "dropout": 0.0, "tie_embeddings": tied}
        config = llama(**settings)
        with torch.random.fork_rng(devices=[]):  # first weights are overwritten: the caller's dice stay
            model = build(config)
        tensors = dict(_ours(weights, sizes, tied))
    except ValueError as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from None
    model.load_state_dict(tensors)
    assert isinstance(model, DecoderOnly)
    return model.eval()


def _read_header(path: Path) -> tuple[dict[str, int], bool]:
    """Return the sizes, and whether the map to logits is the embedding's; refuse a file that does not fit them."""
    size = regular_size(path)
    with path.open("rb") as file:
        start = file.read(HEADER.size)
    if len(start) < HEADER.size:
        raise CheckpointError(f"{path} is not a model of llama2.c: it has {size} bytes, the header alone 28")
    if start[:4] == b"24ka":
        raise CheckpointError(f"{path} is of a later version of llama2.c's format; export it as version 0")
    sizes = dict(zip(NAMES, HEADER.unpack(start), strict=True))
    tied, sizes["vocab_size"] = sizes["vocab_size"] > 0, abs(sizes["vocab_size"])
    for name, number in sizes.items():
        if number < 1:
            raise CheckpointError(f"{path} is not a model of llama2.c: its {name} would be {number}")
    heads, kv = sizes["n_heads"], sizes["n_kv_heads"]
    if sizes["d_model"] % (2 * heads) or heads % kv:
        raise CheckpointError(
            f"{path} is not a model of llama2.c: d_model {sizes['d_model']} cannot be split into n_heads {heads} "
            f"heads of even width, or these shared out to n_kv_heads {kv}"
        )
    expected = HEADER.size + 4 * sum(map(math.prod, _shapes(sizes, tied).values()))
    if size != expected:
        raise CheckpointError(f"{path} has {size:,} bytes, but its header says {expected:,}")
    return sizes, tied


def _shapes(sizes: dict[str, int], tied: bool) -> Shapes:
    """The tensors in the order of the file."""
    d, f, n, heads, kv, vocab, length = (sizes[name] for name in NAMES)
    width = kv * (d // heads)
    shapes: Shapes = {
        "embedding": (vocab, d), "mixer_norm": (n, d), "q": (n, d, d), "k": (n, width, d), "v": (n, width, d),
        "out": (n, d, d), "feed_forward_norm": (n, d), "gate": (n, f, d), "down": (n, d, f), "up": (n, f, d),
        "norm": (d,), "cosines": (length, d // heads // 2), "sines": (length, d // heads // 2),
    }  # fmt: skip
    return shapes if tied else {**shapes, "lm_head": (vocab, d)}


def _ours(weights: dict[str, Tensor], sizes: dict[str, int], tied: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors under our names."""
    yield "embedding.weight", weights["embedding"]
    yield "lm_head.weight", weights["embedding" if tied else "lm_head"]
    yield "stack.norm.weight", weights["norm"]
    for layer in range(sizes["n_layers"]):
        path = f"stack.blocks.{layer}"
        for sublayer in ("mixer", "feed_forward"):
            yield f"{path}.{sublayer}.norm.weight", weights[f"{sublayer}_norm"][layer]
        for name, heads in (("q", sizes["n_heads"]), ("k", sizes["n_kv_heads"])):
            yield f"{path}.mixer.branch.{name}_proj.weight", to_half(weights[name][layer], heads)
        for name in ("v", "out"):
            yield f"{path}.mixer.branch.{name}_proj.weight", weights[name][layer]
        for name in ("gate", "up", "down"):
            yield f"{path}.feed_forward.branch.{name}_proj.weight", weights[name][layer]
