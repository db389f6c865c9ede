"""A model directory as others write it: `config.json` and safetensors, in one file or in shards.

Nothing in it is trusted. Only plain file names beside `config.json` are opened, every header is checked before a
tensor is read, and tensors are read one at a time, large ones by some rows at a time, so that loading needs little more
memory than the model.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...training import strict_json
from ...training.strict_json import CheckpointError
from ...training.tensor_file import Span, check_header, serialize
from .attributes import Attributes

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PIECE = 2**21
"""Bytes that are read at once of a tensor that is copied as it is."""


def read_attributes(folder: Path) -> Attributes:
    """Return the attributes of the directory's `config.json`."""
    path = folder / CONFIG
    data = strict_json.parse(strict_json.read(_vetted(folder, CONFIG)), str(path))
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a table of attributes")
    return Attributes(data, str(path))


class Shards:
    """The tensors of a directory, read by name. size: of their files, in bytes."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._places = _locate(folder)
        self._buffer = bytearray()
        self.size = sum(path.stat().st_size for path in {path for path, _ in self._places.values()})

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._places[name][1].shape

    def get(self, name: str) -> Tensor:
        """Return one tensor, read from its file now."""
        path, span = self._places[name]
        with path.open("rb") as file:
            file.seek(span.start)
            return self._read(file, name, span.shape, bytearray(span.end - span.start))

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield one tensor, some rows at a time; each is gone when the next is asked for."""
        path, span = self._places[name]
        if not span.shape or not span.shape[0]:
            yield self.get(name)
            return
        n_rows, *rest = span.shape
        row = (span.end - span.start) // n_rows
        at_once = max(1, PIECE // max(1, row))
        if at_once * row > len(self._buffer):
            self._buffer = bytearray(at_once * row)
        with path.open("rb") as file:
            file.seek(span.start)
            for start in range(0, n_rows, at_once):
                rows = min(at_once, n_rows - start)
                yield self._read(file, name, (rows, *rest), memoryview(self._buffer)[: rows * row])

    def _read(
        self, file: BinaryIO, name: str, shape: tuple[int, ...], buffer: bytearray | memoryview
    ) -> Tensor:
        """Return what stands next in a file, read into the buffer."""
        path, span = self._places[name]
        if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise CheckpointError(f"{path} is damaged: it ends within the tensor {name[:200]!r}")
        flat = torch.frombuffer(buffer, dtype=span.dtype) if buffer else torch.empty(0, dtype=span.dtype)
        return _finite(flat, name, path).reshape(shape)


def _finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    for piece in torch.split(tensor, PIECE // 8):
        values = piece.float() if piece.element_size() == 1 else piece  # no isfinite for float8
        if not torch.isfinite(values).all():
            raise CheckpointError(f"{path}: the tensor {name[:200]!r} has values that are not finite")
    return tensor


def _locate(folder: Path) -> dict[str, tuple[Path, Span]]:
    """Return the file of every tensor, and where it lies there."""
    index = folder / INDEX
    if not index.exists():
        path = _beside(folder, SINGLE, folder)
        return {name: (path, span) for name, span in check_header(path).items()}
    listed = _weight_map(index, _vetted(folder, INDEX))
    places: dict[str, tuple[Path, Span]] = {}
    shards: dict[str, str] = {}
    for shard in sorted(set(listed.values())):
        path = _beside(folder, shard, index)
        for name, span in check_header(path).items():
            if name in places:
                raise CheckpointError(
                    f"{index}: the tensor {name[:200]!r} is in {shards[name]} and in {shard}"
                )
            places[name], shards[name] = (path, span), shard
    for name, shard in listed.items():
        if shards.get(name) != shard:
            raise CheckpointError(f"{index}: the tensor {name[:200]!r} is not in {shard[:200]}")
    return {name: places[name] for name in listed}


def _weight_map(index: Path, content: Path) -> dict[str, str]:
    data: Any = strict_json.parse(strict_json.read(content), str(index))
    listed = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(listed, dict) or not listed or not all(type(shard) is str for shard in listed.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    return listed


def _beside(folder: Path, name: str, place: Path) -> Path:
    """Return the path of a plain file in the folder; refuse any name that could lead elsewhere."""
    plain = name == Path(name).name and not set(name) & set("/\\\0:") and name not in ("", ".", "..")
    if not plain or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{place} names the file {name[:200]!r}; only .safetensors files beside it are opened"
        )
    return _vetted(folder, name)


def _vetted(folder: Path, name: str) -> Path:
    """Return the path of the file, at the end of any links; refuse one that is missing, or led to from elsewhere."""
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; a model needs its weights as safetensors"
        ) from None
    if not stat.S_ISLNK(mode):
        return path
    if path.resolve().parent != folder.resolve() and not _in_same_cache(folder, path):
        raise CheckpointError(f"{path} is a link that leads out of its folder")
    return path.resolve()


def _in_same_cache(folder: Path, path: Path) -> bool:
    """Whether a link leads to `../../blobs/`, as every file of a downloaded snapshot does."""
    snapshots = folder.resolve().parent
    return snapshots.name == "snapshots" and path.resolve().parent == snapshots.parent / "blobs"


def write_directory(folder: Path, attributes: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`; a file that is there already is replaced whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in ((SINGLE, serialize(tensors)), (CONFIG, [strict_json.encode(attributes, CONFIG)])):
        unfinished = folder / f".{name}.part"
        with unfinished.open("wb") as file:
            for part in parts:
                file.write(part)
        unfinished.replace(folder / name)
