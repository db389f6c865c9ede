"""MANIFEST.json: what a checkpoint consists of, and the proof that every byte of it is still there.

It is written last, so a folder that has one is complete; it holds a digest of itself, so that not even a
score or a tied-weight name can change unnoticed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import strict_json
from .strict_json import JSON, CheckpointError

NAME = "MANIFEST.json"
FORMAT = 1
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_FOLDER_NAME = re.compile(r"step-([0-9]{8,18})|\.old-([0-9]{8,18})-.+")
_BLOCK = 1 << 20


def check_file_name(name: str) -> str:
    """Return `name` if it can only mean a file inside the checkpoint: no separators, no leading dot."""
    if not _FILE_NAME.fullmatch(name) or name == NAME:
        raise CheckpointError(
            f"{name[:80]!r} cannot be a checkpoint's file; use letters, digits, '.', '_', '-', and not {NAME}"
        )
    return name


def folder_step(path: Path) -> int | None:
    """Return the step that a checkpoint folder's name states, None for any other name."""
    match = _FOLDER_NAME.fullmatch(path.name)
    return int(match[1] or match[2]) if match else None


@dataclass(frozen=True)
class FileEntry:
    """One file: its size in bytes and the SHA-256 of its content in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's table of contents.

    `aliases` maps a tensor file to {name: name it is tied to}; a tied tensor is stored once.
    """

    step: int
    score: float | None
    files: Mapping[str, FileEntry]
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the one text that stands for this manifest."""
        files: dict[str, JSON] = {name: vars(entry) for name, entry in self.files.items()}
        body: dict[str, JSON] = {
            "format": FORMAT, "step": self.step, "score": self.score, "files": files, "aliases": self.aliases
        }  # fmt: skip
        digest = hashlib.sha256(strict_json.encode(body, NAME)).hexdigest()
        return strict_json.encode({**body, "sha256": digest}, NAME)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a checkpoint's manifest and check that files of the stated sizes are there.

        Raises:
            CheckpointError: it is missing, damaged, of another format, or does not describe the folder.
        """
        if not folder.is_dir() or folder.is_symlink():
            raise CheckpointError(f"{folder} is not a folder")
        path = folder / NAME
        data = strict_json.read(path)
        manifest = _decode(strict_json.parse(data, str(path)), path)
        if manifest.encode() != data:
            raise CheckpointError(f"{path} is damaged: its digest does not match its content")
        if folder_step(folder) not in (None, manifest.step):
            raise CheckpointError(f"{path} belongs to step {manifest.step}, not to this folder")
        for name, entry in manifest.files.items():
            size = strict_json.regular_size(folder / name)
            if size != entry.size:
                raise CheckpointError(f"{folder / name} is damaged: {size:,} bytes instead of {entry.size:,}")
        return manifest

    def verify(self, folder: Path) -> None:
        """Read every file and compare its hash.

        Raises:
            CheckpointError: a byte differs; the message names the file.
        """
        for name, entry in self.files.items():
            digest = hashlib.sha256()
            with (folder / name).open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            if digest.hexdigest() != entry.sha256:
                raise CheckpointError(f"{folder / name} is damaged: its SHA-256 is not the one in {NAME}")


def _decode(document: Any, path: Path) -> Manifest:
    """Build a manifest from untrusted JSON, checking the type of every field."""
    if isinstance(document, dict) and document.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path} has format {str(document['format'])[:20]}; this version reads {FORMAT}, so update it"
        )
    try:
        step, score = document["step"], document["score"]
        files = {
            check_file_name(name): FileEntry(_natural(entry["size"]), _text(entry["sha256"]))
            for name, entry in document["files"].items()
        }
        aliases = {
            name: {_text(alias): _text(owner) for alias, owner in table.items()}
            for name, table in document["aliases"].items()
        }
        if score is not None and not (type(score) is float and math.isfinite(score)):
            raise TypeError("score")
        return Manifest(_natural(step), score, files, aliases)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: it does not have the fields of a manifest") from error


def _natural(value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    raise TypeError("not a size")


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    raise TypeError("not a text")
