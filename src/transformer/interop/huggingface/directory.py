"""A model directory as others write it: `config.json` and safetensors, in one file or in shards.

Nothing in it is trusted. Only plain file names beside `config.json` are opened, every header is checked before a
tensor is mapped, and tensors are fetched one at a time, so that loading needs little more memory than the model.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...training import strict_json
from ...training.strict_json import CheckpointError
from ...training.tensor_file import check_header, serialize
from .attributes import Attributes

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def read_attributes(folder: Path) -> Attributes:
    """Return the attributes of the directory's `config.json`."""
    path = folder / CONFIG
    data = strict_json.parse(strict_json.read(path), str(path))
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a table of attributes")
    return Attributes(data, str(path))


class Shards:
    """The tensors of a directory, fetched by name."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._files = _locate(folder)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def get(self, name: str) -> Tensor:
        """Return one tensor, read from its file now."""
        path = self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
        return tensor if not tensor.is_floating_point() else _finite(tensor, name, path)


def _finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{path}: the tensor {name[:200]!r} has values that are not finite")
    return tensor


def _locate(folder: Path) -> dict[str, Path]:
    """Return the file of every tensor."""
    index = folder / INDEX
    if not index.exists():
        path = _beside(folder, SINGLE, folder)
        return dict.fromkeys(_names(path), path)
    listed = _weight_map(index)
    files: dict[str, Path] = {}
    for shard in sorted(set(listed.values())):
        path = _beside(folder, shard, index)
        for name in _names(path):
            if name in files:
                raise CheckpointError(
                    f"{index}: the tensor {name[:200]!r} is in {files[name].name} and in {shard}"
                )
            files[name] = path
    for name, shard in listed.items():
        if name not in files or files[name].name != shard:
            raise CheckpointError(f"{index}: the tensor {name[:200]!r} is not in {shard[:200]}")
    return {name: files[name] for name in listed}


def _weight_map(index: Path) -> dict[str, str]:
    data: Any = strict_json.parse(strict_json.read(index), str(index))
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
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; a model needs its weights as safetensors"
        ) from None
    if stat.S_ISLNK(mode) and path.resolve().parent != folder.resolve() and not _in_same_cache(folder, path):
        raise CheckpointError(f"{path} is a link that leads out of its folder")
    return path


def _in_same_cache(folder: Path, path: Path) -> bool:
    """Whether a link leads to `../../blobs/`, as every file of a downloaded snapshot does."""
    snapshots = folder.resolve().parent
    return snapshots.name == "snapshots" and path.resolve().parent == snapshots.parent / "blobs"


def _names(path: Path) -> Iterable[str]:
    check_header(path)
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def write_directory(folder: Path, attributes: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`; a file that is there already is replaced whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in ((SINGLE, serialize(tensors)), (CONFIG, [strict_json.encode(attributes, CONFIG)])):
        unfinished = folder / f".{name}.part"
        with unfinished.open("wb") as file:
            for part in parts:
                file.write(part)
        unfinished.replace(folder / name)
