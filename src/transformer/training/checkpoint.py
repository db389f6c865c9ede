"""Checkpoints that survive a crash at any instant: all of one is there, or none of it.

    checkpoints/.tmp-…/          every file written and forced to the disk, MANIFEST.json last
    checkpoints/step-00000500/   … and then one rename, which either happened or did not
    latest.json, best.json       for people and scripts; loading never depends on them

Loading verifies every byte against the manifest and falls back to an older checkpoint, saying why. A
checkpoint is removed only by renaming it to `.trash-…` first, so a half-removed one is never mistaken for a
damaged one. Saving a step anew moves the present folder to `.old-…`, which loading still accepts.
See Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014) for why each fsync is needed.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from . import strict_json
from .filesystem import FileSystem
from .manifest import NAME as MANIFEST
from .manifest import FileEntry, Manifest, check_file_name, folder_step
from .reading import STATE, TENSORS, Checkpoint, open_checkpoint
from .strict_json import JSON, CheckpointError
from .tensor_file import find_aliases, find_fault, serialize

__all__ = ["JSON", "Checkpoint", "CheckpointError", "CheckpointStore"]

_NO_FILES: Mapping[str, bytes] = MappingProxyType({})


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        folder: the run folder; checkpoints go to `folder/checkpoints`.
        keep_last: how many of the newest stay.
        keep_best: how many of those with the lowest scores stay besides; the very best always does.
        file_system: through which everything is written; tests give one that fails.
    """

    def __init__(
        self, folder: Path, *, keep_last: int = 3, keep_best: int = 1, file_system: FileSystem | None = None
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                f"keep_last is {keep_last} and keep_best is {keep_best}; they must be at least 1 and 0"
            )
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._disk = file_system or FileSystem()

    def save(
        self,
        step: int,
        *,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, JSON],
        files: Mapping[str, bytes] = _NO_FILES,
        score: float | None = None,
    ) -> Path:
        """Write a checkpoint; when this returns it survives a power cut. Old ones are then rotated out.

        Args:
            step: the number of optimizer steps done.
            tensors: file stem → name → tensor, e.g. `{"model": model.state_dict()}`.
            state: what `state.json` holds.
            files: further files by name, e.g. `{"config.yaml": …}`.
            score: lower is better, e.g. the validation loss; one that is not finite never counts as best.

        Raises:
            CheckpointError: a tensor is not finite, or the disk refused. Nothing earlier is touched.
        """
        contents, aliases = _contents(step, tensors, state, files)
        needed = _count_bytes(tensors, files)
        temporary = self.checkpoints / f".tmp-{step}-{_unique()}"
        with self._explaining(f"step {step} is not saved", needed):
            try:
                manifest = self._write_folder(temporary, step, score, contents, aliases)
                final = self._commit(temporary, manifest)
            finally:
                with suppress(OSError):
                    self._remove(temporary)
        with self._explaining(f"step {step} is saved, but tidying up after it failed", needed):
            self._tidy(step)
        return final

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is wholly intact, None if there never was one.

        Raises:
            CheckpointError: there was one, but none is intact now: starting afresh is not resuming.
        """
        found = self._found()
        reported = self._pointed("latest.json")
        missing = reported is not None and reported > max((step for step, _ in found), default=-1)
        return self._first_intact(
            [path for _, path in found],
            [f"latest.json names step {reported}, which is gone"] if missing else [],
        )

    def best(self) -> Checkpoint | None:
        """Return the intact checkpoint with the lowest score, None if none has a score."""
        scored, skipped = [], []
        for step, path in self._found():
            try:
                score = Manifest.read(path).score
            except CheckpointError as error:
                skipped.append(str(error))
            else:
                scored += [] if score is None else [(score, -step, path)]
        return self._first_intact([path for *_, path in sorted(scored)], skipped) if scored else None

    def open(self, step_or_path: int | str | Path) -> Checkpoint:
        """Return the checkpoint of a step of this run, or the one in a folder anywhere.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        if not isinstance(step_or_path, int):
            return open_checkpoint(Path(step_or_path).resolve())
        paths = [path for step, path in self._found() if step == step_or_path]
        if not paths:
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.checkpoints} has no step {step_or_path}; it has {there}")
        checkpoint = self._first_intact(paths, [])
        assert checkpoint is not None
        return checkpoint

    def steps(self) -> tuple[int, ...]:
        """Return the steps that have a checkpoint, in order; whether they are intact shows on opening."""
        return tuple(sorted({step for step, _ in self._found()}))

    def sweep(self) -> None:
        """Remove what a crash left behind and finish its pointers. Call at start-up, holding the run's lock.

        Nothing is rotated out here: who sweeps may yet turn out not to be the owner of these checkpoints.
        """
        for path in _listing(self.checkpoints):
            step = folder_step(path)
            if path.name.startswith((".tmp-", ".trash-")):
                self._remove(path)
            elif path.name.startswith(".old-") and step is not None:
                self._settle(path, self._final(step))
        for path in _listing(self.folder):
            if path.name.startswith(".tmp-"):
                self._remove(path)
        if known := self._readable():
            self._update_pointers(known, max(known))

    # — writing —

    def _make_folders(self) -> None:
        """Make the folders and force their names to the disk, up to the first that was there already."""
        missing = [path for path in (self.checkpoints, *self.checkpoints.parents) if not path.exists()]
        for path in reversed(missing):
            self._disk.mkdir(path)
        for path in (self.folder, *(path.parent for path in missing)):
            self._disk.fsync_dir(path)
        with suppress(PermissionError):  # the parent of a folder that was there may be closed to us
            self._disk.fsync_dir(self.folder.parent)

    def _write_folder(
        self,
        folder: Path,
        step: int,
        score: float | None,
        contents: Mapping[str, Iterable[bytes | memoryview]],
        aliases: Mapping[str, Mapping[str, str]],
    ) -> Manifest:
        """Write a complete checkpoint under a temporary name, the manifest last."""
        self._make_folders()
        self._disk.mkdir(folder)
        entries = {name: self._write(folder / name, chunks) for name, chunks in contents.items()}
        finite = float(score) if score is not None and math.isfinite(score) else None
        manifest = Manifest(step, finite, entries, aliases)
        self._write(folder / MANIFEST, [manifest.encode()])
        self._disk.fsync_dir(folder)
        return manifest

    def _write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
        """Write one file durably, taking its size and hash on the way."""
        digest, size = hashlib.sha256(), 0

        def passing() -> Iterator[bytes | memoryview]:
            nonlocal size
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        self._disk.write(path, passing())
        self._disk.fsync(path)
        return FileEntry(size, digest.hexdigest())

    def _commit(self, temporary: Path, manifest: Manifest) -> Path:
        """Give a complete folder its final name; an equal one that is there already stays instead."""
        final = self._final(manifest.step)
        if final.is_dir():
            if _same(final, manifest):
                return final
            self._disk.rename(final, self.checkpoints / f".old-{manifest.step:08d}-{_unique()}")
        self._disk.rename(temporary, final)
        self._disk.fsync_dir(self.checkpoints)
        return final

    def _tidy(self, step: int) -> None:
        """Update the pointers, then remove what was replaced, and all but the newest and the best.

        Only checkpoints that look whole are counted, and only those are removed: a folder that cannot be
        read now may be readable after the disk is repaired.
        """
        known = {step: Manifest.read(self._final(step)), **self._readable()}
        ranking = _rank(known)
        self._update_pointers(known, step)
        kept = {step, *sorted(known)[-self.keep_last :], *ranking[: max(1, self.keep_best)]}
        replaced = [path for found, path in self._found() if found == step and path != self._final(step)]
        for path in (*replaced, *(self._final(old) for old in sorted(known.keys() - kept))):
            self._discard(path)

    def _update_pointers(self, known: Mapping[int, Manifest], step: int) -> None:
        self._point("latest.json", known[step])
        for best in _rank(known)[:1]:
            self._point("best.json", known[best])

    def _point(self, name: str, manifest: Manifest) -> None:
        path = self._final(manifest.step).relative_to(self.folder).as_posix()
        temporary = self.folder / f".tmp-{name}-{_unique()}"
        document: dict[str, JSON] = {"step": manifest.step, "score": manifest.score, "path": path}
        content = strict_json.encode(document, name)
        with suppress(CheckpointError):
            if strict_json.read(self.folder / name) == content:
                return
        try:
            self._write(temporary, [content])
            self._disk.rename(temporary, self.folder / name)
            self._disk.fsync_dir(self.folder)
        finally:
            with suppress(OSError):
                self._remove(temporary)

    def _settle(self, aside: Path, final: Path) -> None:
        """Finish a replacement that a crash interrupted: the new folder wins if it is intact."""
        if not final.exists():
            self._disk.rename(aside, final)
            self._disk.fsync_dir(self.checkpoints)
        else:
            with suppress(CheckpointError):  # a damaged one leaves both, and loading tries both
                open_checkpoint(final)
                self._discard(aside)

    def _discard(self, path: Path) -> None:
        """Remove a checkpoint so that a crash on the way cannot leave half of it under its name."""
        trash = self.checkpoints / f".trash-{path.name}-{_unique()}"
        self._disk.rename(path, trash)
        self._disk.fsync_dir(self.checkpoints)
        self._remove(trash)

    def _remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            for child in _listing(path):
                self._remove(child)
            self._disk.rmdir(path)
        elif path.exists() or path.is_symlink():
            self._disk.unlink(path)

    @contextmanager
    def _explaining(self, what: str, needed: int) -> Iterator[None]:
        """Turn what the disk refuses into one line: what happened, where, bytes needed and bytes free."""
        try:
            yield
        except OSError as error:
            try:
                free = f"{self._disk.free_bytes(self.folder):,}"
            except OSError:
                free = "an unknown number"
            raise CheckpointError(
                f"{what}: {error.filename}: {error.strerror} (needs about {needed:,} bytes, {free} free); "
                "earlier checkpoints are untouched"
            ) from error

    # — reading —

    def _final(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def _found(self) -> list[tuple[int, Path]]:
        """Return (step, folder), newest first; one set aside comes after the one that replaced it."""
        steps = [
            (step, path) for path in _listing(self.checkpoints) if (step := folder_step(path)) is not None
        ]
        return sorted(steps, key=lambda item: (item[0], item[1].name.startswith("step-")), reverse=True)

    def _readable(self) -> dict[int, Manifest]:
        """Return step → manifest of the checkpoints that look whole without reading all of them."""
        known = {}
        for step in self.steps():
            with suppress(CheckpointError):
                known[step] = Manifest.read(self._final(step))
        return known

    def _pointed(self, name: str) -> int | None:
        """Return the step that a pointer names; a damaged pointer names none."""
        with suppress(CheckpointError, OSError):
            document = strict_json.parse(strict_json.read(self.folder / name), name)
            if isinstance(document, dict) and isinstance(document.get("step"), int):
                return int(document["step"])
        return None

    def _first_intact(self, paths: list[Path], skipped: list[str]) -> Checkpoint | None:
        for path in paths:
            try:
                return replace(open_checkpoint(path), skipped=tuple(skipped))
            except CheckpointError as error:
                skipped = [*skipped, str(error)]
        if skipped:
            raise CheckpointError(
                f"no checkpoint in {self.checkpoints} can be read: {'; '.join(skipped)}; "
                "restore one, or choose another output folder to start afresh"
            )
        return None


def _rank(known: Mapping[int, Manifest]) -> list[int]:
    """Return the steps that have a score, the best first; the newer one of equals."""
    scored = sorted((manifest.score, -step) for step, manifest in known.items() if manifest.score is not None)
    return [-negative for _, negative in scored]


def _same(folder: Path, manifest: Manifest) -> bool:
    """Whether an intact checkpoint in `folder` has exactly this content."""
    with suppress(CheckpointError):
        return open_checkpoint(folder).manifest == manifest
    return False


def _contents(
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, JSON],
    files: Mapping[str, bytes],
) -> tuple[dict[str, Iterable[bytes | memoryview]], dict[str, dict[str, str]]]:
    """Return file name → bytes to write, and each tensor file's tied names; refuse what is not finite."""
    if step < 0:
        raise CheckpointError(f"a step counts from 0, not {step}")
    contents: dict[str, Iterable[bytes | memoryview]] = {}
    tied = {}
    for stem, group in tensors.items():
        if fault := find_fault(group):
            raise CheckpointError(
                f"step {step} is not saved: in {stem!r}, {fault}; earlier checkpoints are untouched"
            )
        name = check_file_name(stem + TENSORS)
        aliases = find_aliases(group)
        contents[name] = serialize({key: tensor for key, tensor in group.items() if key not in aliases})
        if aliases:
            tied[name] = aliases
    for name, data in (*files.items(), (STATE, strict_json.encode(state, STATE))):
        if name in contents:
            raise CheckpointError(f"the checkpoint would have two files named {name!r}; rename one")
        contents[check_file_name(name)] = [data]
    return contents, tied


def _count_bytes(tensors: Mapping[str, Mapping[str, Tensor]], files: Mapping[str, bytes]) -> int:
    """Return the bytes of a checkpoint but for headers and state, a tied tensor counted once."""
    stored = {tensor.data_ptr(): tensor.nbytes for group in tensors.values() for tensor in group.values()}
    return sum(stored.values()) + sum(len(data) for data in files.values())


def _listing(folder: Path) -> list[Path]:
    """Return a folder's entries in order, none if there is no such folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _unique() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"
