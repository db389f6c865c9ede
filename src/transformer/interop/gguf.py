"""A LLaMA in a GGUF file, llama.cpp's format, read through the package `gguf`.

Weights are made float again as they are read, one tensor at a time: as they are (F32, F16, BF16), or of blocks of 32
numbers with a scale each,

    Q8_0: w = d · q,  q of 8 bits        Q4_0: w = d · (q − 8)        Q4_1: w = d · q + m,  q of 4 bits

GGUF turns neighbouring dimensions, (2j, 2j + 1); the rows of W^Q and W^K are reordered for ours, (j, j + e/2). Only the
architecture `llama` is read; every one of its settings is used or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

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
from ..models import DecoderOnlyConfig, Model, build
from ..training.strict_json import CheckpointError, regular_size
from .huggingface.attributes import Attributes
from .huggingface.weights import Rule, linear, read_weights, reordered, same

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
MALFORMED = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError)


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Return the model of a GGUF file, in eval mode and on the CPU.

    ValueError for a file that is damaged, of another architecture, or whose numbers are packed otherwise than `TYPES`;
    and where the package `gguf` is not installed.
    """
    source = _Tensors(Path(path))
    config = _read(source.attributes(), source)
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are overwritten: the caller's dice stay
            model = build(config).to(dtype)
    except (ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} describes a model that cannot be built: {reason}") from None
    read_weights(model, _rules(config), source, lambda _: False)
    return model.eval()


class _Tensors:
    """The tensors of a file, made float one at a time, and its settings."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError:
            raise CheckpointError(
                f"{path} cannot be read without the package gguf; run: pip install 'transformer-from-scratch[gguf]'"
            ) from None
        self.where, self._quants = str(path), gguf.quants
        regular_size(path)
        try:
            reader = gguf.GGUFReader(path)
            self._fields = {name: field.contents() for name, field in reader.fields.items()}
        except MALFORMED as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} is not a GGUF file, or damaged: {reason[:200]}") from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def get(self, name: str) -> Tensor:
        """Return one tensor in float32."""
        found = self._tensors[name]
        kind = found.tensor_type.name
        if kind not in TYPES:
            raise CheckpointError(
                f"{self.where}: the tensor {name!r} is of type {kind}, and only {', '.join(TYPES)} are read"
            )
        values = self._quants.dequantize(found.data, found.tensor_type)
        tensor = torch.from_numpy(np.array(values, dtype=np.float32))
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{self.where}: the tensor {name!r} has values that are not finite")
        return tensor

    def attributes(self) -> Attributes:
        """Return the settings of the architecture; those of the tokenizer and of the file itself are left alone."""
        architecture = self._fields.get("general.architecture")
        if architecture != "llama":
            raise CheckpointError(
                f"{self.where} has the architecture {str(architecture)[:80]!r}, and only 'llama' is read"
            )
        own = {k.removeprefix("llama."): v for k, v in self._fields.items() if k.startswith("llama.")}
        return Attributes({"model_type": "llama", **own}, self.where)

    def rows(self, name: str) -> int:
        """How many rows a matrix has."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.where} has no tensor {name!r}")
        return int(self._tensors[name].shape[-1])  # GGUF counts dimensions from the innermost


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
