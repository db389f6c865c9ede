"""A LLaMA in a GGUF file, llama.cpp's format, read through the package `gguf`.

Weights are made float again as they are read, some rows at a time: as they are (F32, F16, BF16), or of blocks of 32
numbers with a scale each,

    Q8_0: w = d · q,  q of 8 bits        Q4_0: w = d · (q − 8)        Q4_1: w = d · q + m,  q of 4 bits

GGUF turns neighbouring dimensions, (2j, 2j + 1); the rows of W^Q and W^K are reordered for ours, (j, j + e/2). Only the
architecture `llama` is read; every one of its settings is used or refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.stack import BlockConfig, StackConfig
from ..base.wiring import PreNormConfig
from ..enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from ..enhancements.feed_forward.glu import GatedFeedForwardConfig
from ..enhancements.initialization import GPT2Config
from ..enhancements.normalization.rms_norm import RMSNormConfig
from ..enhancements.position.rope import RotaryPositionConfig, to_half, to_interleaved
from ..models import KINDS, DecoderOnlyConfig, Model
from ..training.strict_json import CheckpointError
from ..utils.codec import decode, encode
from .gguf_header import read_header
from .huggingface.attributes import Attributes
from .huggingface.directory import PIECE
from .huggingface.hollow import build_hollow
from .huggingface.weights import Rule, linear, read_weights, reordered, same

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Return the model of a GGUF file, in eval mode and on the CPU.

    ValueError for a file that is damaged, of another architecture, or whose numbers are packed otherwise than `TYPES`;
    and where the package `gguf` is not installed.
    """
    source = _Tensors(Path(path))
    config = _read(source.attributes(), source)
    try:
        decode(type(config), encode(config), kinds=KINDS)  # numbers within the bounds of each part
        model = build_hollow(config, dtype, 2 * source.size)  # of four bits a number
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = (str(error).splitlines() or ["it does not fit into memory"])[0]
        raise CheckpointError(f"{path} describes a model that cannot be built: {reason}") from None
    read_weights(model, _rules(config), source, lambda _: False)
    return model.eval()


class _Tensors:
    """The tensors of a file, made float one at a time, and its settings. size: of the file, in bytes."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError:
            raise CheckpointError(
                f"{path} cannot be read without the package gguf; run: pip install 'transformer-from-scratch[gguf]'"
            ) from None
        self.where, self._path, self._gguf = str(path), path, gguf
        header = read_header(path)
        self._settings, self._entries, self.size = header.settings, header.tensors, header.size

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor, its innermost dimension last."""
        return tuple(reversed(self._entries[name].sizes))

    def get(self, name: str) -> Tensor:
        """Return one tensor in float32."""
        return torch.cat(list(self.pieces(name))).reshape(self.shape(name))

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield one tensor in float32, some rows at a time."""
        entry, (kind, row) = self._entries[name], self._row(name)
        at_once = entry.rows if len(entry.sizes) != 2 else max(1, PIECE // (4 * entry.sizes[0]))
        with self._path.open("rb") as file:
            file.seek(entry.offset)
            for start in range(0, entry.rows, at_once):
                rows = min(at_once, entry.rows - start)
                data = np.frombuffer(file.read(rows * row), np.uint8).reshape(rows, row)
                values = self._gguf.quants.dequantize(data, kind)
                if not np.isfinite(values).all():
                    raise CheckpointError(f"{self.where}: the tensor {name!r} has values that are not finite")
                shape = (rows, entry.sizes[0]) if len(entry.sizes) == 2 else self.shape(name)
                yield torch.from_numpy(np.require(values, np.float32, "W")).reshape(shape)

    def _row(self, name: str) -> tuple[Any, int]:
        """Return the type of a tensor's numbers, and how many bytes a row of them has; refuse one that cannot be."""
        entry = self._entries[name]
        number, types = entry.type_number, self._gguf.GGMLQuantizationType
        kind = types(number) if number in set(types) else None
        if kind is None or kind.name not in TYPES:
            told = number if kind is None else kind.name
            raise CheckpointError(
                f"{self.where}: the tensor {name!r} is of type {told}, and only {', '.join(TYPES)} are read"
            )
        block, size = self._gguf.GGML_QUANT_SIZES[kind]
        row = entry.sizes[0] // block * size
        if entry.sizes[0] % block or entry.offset + entry.rows * row > self.size:
            raise CheckpointError(
                f"{self.where}: the tensor {name!r} of shape {list(self.shape(name))} does not fit into the file"
            )
        return kind, row

    def attributes(self) -> Attributes:
        """Return the settings of the architecture; those of the tokenizer and of the file itself are left alone."""
        architecture = self._settings.get("general.architecture")
        if architecture != "llama":
            raise CheckpointError(
                f"{self.where} has the architecture {str(architecture)[:80]!r}, and only 'llama' is read"
            )
        own = {k.removeprefix("llama."): v for k, v in self._settings.items() if k.startswith("llama.")}
        found = Attributes({"model_type": "llama", **own}, self.where)
        found.bound(len(self._entries), self.size)
        return found

    def rows(self, name: str) -> int:
        """How many rows a matrix has."""
        if name not in self._entries:
            raise CheckpointError(f"{self.where} has no tensor {name!r}")
        return self._entries[name].sizes[-1]  # GGUF counts dimensions from the innermost


def _read(attributes: Attributes, source: _Tensors) -> DecoderOnlyConfig:
    """Return the config that the settings describe."""
    d_model, n_layers = attributes.take("embedding_length", int), attributes.take("block_count", int)
    n_heads = attributes.take("attention.head_count", int)
    kv = attributes.take("attention.head_count_kv", int, n_heads)
    width = attributes.take("attention.key_length", int, d_model // max(1, n_heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        attributes.only(name, width)
    for name, value in (("rope.scaling.type", "none"), ("expert_count", 0), ("expert_used_count", 0)):
        attributes.only(name, value)
    vocab_size = source.rows("token_embd.weight")
    attributes.only("vocab_size", vocab_size)
    norm = RMSNormConfig(_single(attributes.take("attention.layer_norm_rms_epsilon", float)))
    base, length = attributes.take("rope.freq_base", float, 10000.0), attributes.take("context_length", int)
    kv_heads, d_head = None if kv == n_heads else kv, None if width * n_heads == d_model else width
    feed_forward = GatedFeedForwardConfig(attributes.take("feed_forward_length", int))
    attributes.finish()
    try:
        mixer = GroupedQueryAttentionConfig(n_heads, kv_heads, d_head)
    except (ValueError, ZeroDivisionError) as error:
        raise attributes.fault(f"describes a model that cannot be built: {error}") from None
    block = BlockConfig(mixer, feed_forward, wiring=PreNormConfig(0.0), norm=norm)
    position = RotaryPositionConfig(_single(base), max_seq_len=length)
    return DecoderOnlyConfig(
        vocab_size,
        d_model,
        StackConfig((block,) * n_layers, position, norm, 0.0),
        tie_embeddings="output.weight" not in source.names,
        initialization=GPT2Config(),
    )


def _single(number: float) -> float:
    """The shortest number that float32 rounds to this one: what was meant when it was written so."""
    return float(str(np.float32(number)))


def _rules(config: DecoderOnlyConfig) -> Sequence[Rule]:
    """How the weights are called."""
    found = [same("token_embd.weight", "embedding.weight"), *linear("output_norm", "stack.norm")]
    for layer, block in enumerate(config.stack.blocks):
        assert isinstance(block, BlockConfig) and isinstance(block.mixer, GroupedQueryAttentionConfig)
        theirs, ours, mixer = f"blk.{layer}", f"stack.blocks.{layer}", block.mixer
        attention, network = f"{ours}.mixer.branch", f"{ours}.feed_forward.branch"
        for name, heads in (("q", mixer.n_heads), ("k", mixer.n_kv_heads or mixer.n_heads)):
            turns = partial(to_half, n_heads=heads), partial(to_interleaved, n_heads=heads)
            found.append(reordered(f"{theirs}.attn_{name}.weight", f"{attention}.{name}_proj.weight", *turns))
        found += linear(f"{theirs}.attn_v", f"{attention}.v_proj")
        found += linear(f"{theirs}.attn_output", f"{attention}.out_proj")
        for name in ("gate", "up", "down"):
            found += linear(f"{theirs}.ffn_{name}", f"{network}.{name}_proj")
        found += linear(f"{theirs}.attn_norm", f"{ours}.mixer.norm")
        found += linear(f"{theirs}.ffn_norm", f"{ours}.feed_forward.norm")
    if not config.tie_embeddings:
        found.append(same("output.weight", "lm_head.weight"))
    return found
