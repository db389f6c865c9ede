"""One checkpoint, opened: every byte is verified before any is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from . import strict_json
from .manifest import Manifest
from .strict_json import CheckpointError
from .tensor_file import read_tensors

STATE = "state.json"
TENSORS = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte was verified when it was opened.

    `skipped` says, one line each, why newer (or better) ones were passed over.
    """

    step: int
    path: Path
    score: float | None
    state: dict[str, Any]
    skipped: tuple[str, ...]
    manifest: Manifest = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its files, `MANIFEST.json` aside."""
        return tuple(sorted(self.manifest.files))

    def file(self, name: str) -> bytes:
        """Return the content of one file, such as `config.yaml`."""
        if name not in self.manifest.files:
            raise CheckpointError(f"{self.path} has no {name!r}; it has {', '.join(self.names)}")
        return (self.path / name).read_bytes()

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """Return the named tensors saved under `stem`, on the CPU; tied names share one tensor."""
        name = stem + TENSORS
        if name not in self.manifest.files:
            raise CheckpointError(f"{self.path} has no {name!r}; it has {', '.join(self.names)}")
        tensors = read_tensors(self.path / name)
        for alias, owner in self.manifest.aliases.get(name, {}).items():
            if owner not in tensors or alias in tensors:
                raise CheckpointError(f"{self.path / name} cannot tie {alias[:80]!r} to {owner[:80]!r}")
            tensors[alias] = tensors[owner]
        return tensors


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder, verifying every byte."""
    try:
        manifest = Manifest.read(path)
        if STATE not in manifest.files:
            raise CheckpointError(f"{path} is not a checkpoint: its manifest lists no {STATE}")
        manifest.verify(path)
        state = strict_json.parse(strict_json.read(path / STATE), str(path / STATE))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / STATE} is damaged: it is not a table")
    return Checkpoint(manifest.step, path, manifest.score, state, (), manifest)
