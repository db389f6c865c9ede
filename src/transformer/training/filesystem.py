"""The few calls through which every change of a checkpoint reaches the disk.

Keeping them in one small object makes "what if the machine stops here?" a question that a test can ask of
every single operation: a recording or failing object with the same methods takes this one's place.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class FileSystem:
    """The real disk. Every method raises `OSError` that names the path."""

    def mkdir(self, path: Path) -> None:
        """Make one directory; its parent exists, it does not."""
        path.mkdir()

    def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a new file. The bytes are safe from a power cut only after `fsync`."""
        with _named(path), path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)

    def fsync(self, path: Path) -> None:
        """Force a file's bytes to the disk."""
        _fsync(path)

    def fsync_dir(self, path: Path) -> None:
        """Force a directory's entries (creations, renames, removals) to the disk."""
        try:
            _fsync(path)
        except OSError as error:
            if error.errno != errno.EINVAL:  # "not supported": some network file systems write through anyway
                raise

    def rename(self, source: Path, target: Path) -> None:
        """Rename atomically, replacing `target` if it is a file or an empty directory."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def free_bytes(self, path: Path) -> int:
        """Return how many bytes can still be written below `path`."""
        return shutil.disk_usage(path).free


def _fsync(path: Path) -> None:
    with _named(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the path into errors of calls that know only a file descriptor."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
