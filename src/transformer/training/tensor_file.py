"""Tensors in a file without pickle: the safetensors format, streamed out, and checked on the way in.

    file = u64 little-endian n | n bytes of JSON {name: {dtype, shape, data_offsets}} | the tensors' raw bytes

Writing goes tensor by tensor, so a save needs memory for the largest tensor and not for a second copy of the
model. Reading trusts nothing: `check_header` refuses what the library lets through (duplicate names) and
what would cost memory before it is refused (a header of 2^63 bytes), then the library maps the file.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from . import strict_json
from .strict_json import CheckpointError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class Span:
    """Where a tensor lies: the bytes from `start` to `end` of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def find_aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return {name: earlier name} for names that are the very same tensor (tied weights)."""
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue  # empty tensors all share the null address
        identity = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        owner = first.setdefault(identity, name)
        if owner != name:
            aliases[name] = owner
    return aliases


def find_fault(tensors: Mapping[str, Tensor]) -> str | None:
    """Return why the first tensor that must not be saved must not: its type, or a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided:
            return f"{name!r} is {tensor.layout} {tensor.dtype}, not dense {', '.join(_DTYPES)}"
        if tensor.is_floating_point() or tensor.is_complex():
            values = tensor.float() if tensor.element_size() == 1 else tensor  # no isfinite for float8
            if not torch.isfinite(values).all():
                return f"{name!r} has values that are not finite"
    return None


def serialize(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file: the header, then each tensor.

    The tensors must be free of `find_fault`. The widest types come first, so that every tensor lies at a
    multiple of its element size.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": [*tensor.shape],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > strict_json.MAX_BYTES:
        raise CheckpointError(
            f"{len(tensors):,} tensors need a header beyond {strict_json.MAX_BYTES:,} bytes"
        )
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is malformed; nothing of it was used.
    """
    check_header(path)
    try:
        return load_file(path)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def check_header(path: Path) -> dict[str, Span]:
    """Return where each tensor lies.

    Refuses a file whose header is too large, malformed, ambiguous, or at odds with the file's size.
    """
    size = strict_json.regular_size(path)
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, strict_json.MAX_BYTES):
            raise CheckpointError(
                f"{path} is not a safetensors file: a header of {length:,} bytes cannot be right"
            )
        header = strict_json.parse(file.read(length), f"the header of {path}")
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {path} is damaged: it is not a table of tensors")
    header.pop("__metadata__", None)
    spans = {name: _span(entry, name, path, 8 + length, size) for name, entry in header.items()}
    _check_cover(spans.values(), path, 8 + length, size)
    return spans


def _span(entry: Any, name: str, path: Path, begin: int, size: int) -> Span:
    """Return where one tensor lies after checking type, shape and range; the data begin at `begin`."""
    available = size - begin
    where = f"the header of {path} is damaged: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"{where} has the unknown type {str(dtype)[:80]!r}")
    if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where} has a shape or an offset that is not a plain size")
    start, end = offsets
    if not start <= end <= available:
        raise CheckpointError(f"{where} lies at {start}..{end}, outside the file's {available:,} bytes")
    if end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise CheckpointError(f"{where} has {end - start:,} bytes, which is not what its shape needs")
    return Span(_DTYPES[dtype], tuple(shape), begin + start, begin + end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_cover(spans: Iterable[Span], path: Path, begin: int, size: int) -> None:
    """The tensors must fill the data exactly: no overlap, no hole in which something could hide."""
    position = begin
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        if span.start != position:
            raise CheckpointError(
                f"the header of {path} is damaged: tensors overlap or leave a hole at {position - begin}"
            )
        position = span.end
    if position != size:
        raise CheckpointError(f"{path} is damaged: {size - position:,} bytes belong to no tensor")
