"""Disks for tests: one that records, one that fails, and a model of what a power cut may leave."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from transformer.training.checkpoint import Checkpoint, CheckpointStore
from transformer.training.filesystem import FileSystem

MEMORY = Path("/dev/shm")
Chunks = Iterable[bytes | memoryview]


def folder_in_memory() -> Iterator[Path]:
    """Yield a folder in memory where there is such a place: thousands of small files, and no disk to wait for."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as name:
        yield Path(name)


def save(store: CheckpointStore, step: int, token: int, score: float | None = None) -> Path:
    """Save a small checkpoint whose every file depends on `token`."""
    weight = torch.full((40, 30), float(token))
    tensors = {"model": {"a": weight, "tied": weight}, "optimizer": {"a.exp_avg": weight[0] / 3}}
    files = {"config.yaml": f"seed: {token}\n".encode()}
    return store.save(step, tensors=tensors, state={"token": token}, files=files, score=score)


def token_of(checkpoint: Checkpoint) -> int:
    """Return the token a checkpoint was saved with, having compared all its files with it."""
    token = int(checkpoint.state["token"])
    model, optimizer = checkpoint.tensors("model"), checkpoint.tensors("optimizer")
    assert torch.equal(model["a"], torch.full((40, 30), float(token)))
    assert model["tied"] is model["a"]
    assert torch.equal(optimizer["a.exp_avg"], torch.full((30,), float(token)) / 3)
    assert checkpoint.file("config.yaml") == f"seed: {token}\n".encode()
    return token


class QuickDisk(FileSystem):
    """The real disk without waiting for it, for tests about something other than the disk."""

    def fsync(self, path: Path) -> None:
        assert path.is_file()

    def fsync_dir(self, path: Path) -> None:
        assert path.is_dir()


@dataclass
class RecordingDisk(QuickDisk):
    """A disk keeping a list of what was done to it."""

    operations: list[tuple[str, Path, object]] = field(default_factory=list)

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self.operations.append(("mkdir", path, None))

    def write(self, path: Path, chunks: Chunks) -> None:
        super().write(path, chunks)
        self.operations.append(("write", path, path.read_bytes()))

    def fsync(self, path: Path) -> None:
        super().fsync(path)
        self.operations.append(("fsync", path, None))

    def fsync_dir(self, path: Path) -> None:
        super().fsync_dir(path)
        self.operations.append(("fsync_dir", path, None))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.operations.append(("rename", source, target))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.operations.append(("unlink", path, None))

    def rmdir(self, path: Path) -> None:
        super().rmdir(path)
        self.operations.append(("unlink", path, None))


@dataclass
class FailingDisk(QuickDisk):
    """A disk whose operation number `at` fails; with `lasting`, so do all later ones that need room."""

    at: int
    code: int = errno.ENOSPC
    lasting: bool = False
    count: int = 0

    def _step(self, path: Path, *, needs_room: bool = True) -> None:
        self.count += 1
        if self.count - 1 == self.at or (self.lasting and needs_room and self.count > self.at):
            raise OSError(self.code, os.strerror(self.code), str(path))

    def mkdir(self, path: Path) -> None:
        self._step(path)
        super().mkdir(path)

    def write(self, path: Path, chunks: Chunks) -> None:
        try:
            self._step(path)
        except OSError:
            path.write_bytes(b"".join(chunks)[:7])
            raise
        super().write(path, chunks)

    def fsync(self, path: Path) -> None:
        self._step(path)
        super().fsync(path)

    def fsync_dir(self, path: Path) -> None:
        self._step(path)
        super().fsync_dir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._step(source)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step(path, needs_room=False)
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self._step(path, needs_room=False)
        super().rmdir(path)


@dataclass
class Node:
    """A file or directory: what is durable, and what so far only the page cache knows.

    `pending` holds one item per directory operation; each is a set of entries that change together.
    """

    data: bytes | None = None
    synced: bool = True
    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)

    def change(self, entries: dict[str, Node | None]) -> None:
        _apply(self.entries, entries)
        self.pending.append(entries)


class PowerCut:
    """A model of a folder on a disk that keeps only what was forced to it, and any subset of the rest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = _node_of(root)

    def apply(self, operation: tuple[str, Path, object]) -> None:
        kind, path, extra = operation
        if path == self.root.parent or (kind == "fsync_dir" and path not in (self.root, *self._below(path))):
            return
        if kind == "mkdir":
            self._node(path.parent).change({path.name: Node()})
        elif kind == "write":
            assert isinstance(extra, bytes)
            self._node(path.parent).change({path.name: Node(data=extra, synced=False)})
        elif kind == "fsync":
            self._node(path).synced = True
        elif kind == "fsync_dir":
            node = self._node(path)
            node.durable, node.pending = dict(node.entries), []
        elif kind == "rename":
            assert isinstance(extra, Path) and extra.parent == path.parent, (
                "one directory, so one atomic change"
            )
            self._node(path.parent).change({path.name: None, extra.name: self._node(path)})
        elif kind == "unlink":
            self._node(path.parent).change({path.name: None})

    def outcome(self, dice: random.Random) -> dict[str, bytes | None]:
        """Return one state the disk may be in afterwards: path → content, None for a directory."""
        state: dict[str, bytes | None] = {}
        keep = dice.choice((0.0, 0.5, 0.5, 0.9, 1.0))
        _survive(self.top, "", keep, dice, state)
        return state

    def _below(self, path: Path) -> tuple[Path, ...]:
        return (path,) if self.root in path.parents else ()

    def _node(self, path: Path) -> Node:
        node = self.top
        for part in path.relative_to(self.root).parts:
            node = node.entries[part]
        return node


def materialize(state: dict[str, bytes | None], root: Path) -> None:
    """Write a state to a real, empty folder."""
    root.mkdir()
    for name, data in state.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def fingerprint(state: dict[str, bytes | None]) -> bytes:
    digest = hashlib.sha256()
    for name, data in state.items():
        digest.update(f"{name}\0{-1 if data is None else len(data)}\0".encode() + (data or b""))
    return digest.digest()


def _survive(
    node: Node, prefix: str, keep: float, dice: random.Random, state: dict[str, bytes | None]
) -> None:
    entries = dict(node.durable)
    for change in node.pending:
        if dice.random() < keep:
            _apply(entries, change)
    for name, child in sorted(entries.items()):
        path = prefix + name
        if child.data is None:
            state[path] = None
            _survive(child, path + "/", keep, dice, state)
        else:
            state[path] = child.data if child.synced else _torn(child.data, dice)


def _torn(data: bytes, dice: random.Random) -> bytes:
    """Return what may be found of bytes that were written but never forced to the disk."""
    cut = dice.randrange(len(data) + 1)
    return dice.choice(
        (b"", data, data[:cut], data[:cut] + bytes(len(data) - cut), dice.randbytes(len(data)))
    )


def _apply(entries: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _node_of(path: Path) -> Node:
    if path.is_file():
        return Node(data=path.read_bytes())
    entries = {child.name: _node_of(child) for child in path.iterdir()}
    return Node(entries=entries, durable=dict(entries))
