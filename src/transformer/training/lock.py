"""One writer per run folder.

The kernel holds the lock (flock) and drops it when its process dies, however it dies; so a lock can never
be left behind, and the text in the file serves only to tell a second process who the first one is.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_PATIENCE = 2.0
_PAUSE = 0.02


class RunLockError(ValueError):
    """Another process writes to the run folder; the message is one line and names it."""


class RunLock:
    """Exclusive right to write to a run folder, as a context manager.

    Raises:
        RunLockError: on entering, when another live process has it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "run.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, or raise `RunLockError` naming who has it."""
        if self._descriptor is not None:
            raise RunLockError(f"{self.path} is already held by this very object")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._wait(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        self._descriptor = descriptor
        # A forked child would keep the lock alive after its parent's death: it closes its copy at once.
        os.register_at_fork(after_in_child=lambda: self._forget(descriptor))

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would race with the next owner."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            self._forget(self._descriptor)

    def _forget(self, descriptor: int) -> None:
        if self._descriptor == descriptor:
            os.close(descriptor)
            self._descriptor = None

    def _wait(self, descriptor: int) -> None:
        """Take the kernel's lock; refuse for a live holder, wait for one that is just coming or going."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            holder = _holder(descriptor)
            if holder and (_is_alive(*holder) or time.monotonic() > deadline):
                pid, host = holder
                raise RunLockError(
                    f"{self.path.parent} is being written by process {pid} on {host}; "
                    "stop that process or choose another output folder"
                )
            if time.monotonic() > deadline:
                raise RunLockError(f"{self.path.parent} is being written by another process; stop it first")
            time.sleep(_PAUSE)


def _holder(descriptor: int) -> tuple[int, str] | None:
    """Return (pid, host) as the lock's file states them; None while it is being written."""
    with suppress(ValueError, KeyError, TypeError):
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return int(owner["pid"]), str(owner["host"])
    return None


def _is_alive(pid: int, host: str) -> bool:
    """Whether the process exists; on another host nobody can tell, so it counts as alive."""
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
