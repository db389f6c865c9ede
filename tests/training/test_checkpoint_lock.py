"""One writer per run folder, whatever order processes start and die in."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transformer.training.lock import RunLock, RunLockError

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def fork(work: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """Run `work(say)` in a child process; return its pid and the descriptor on which it is heard."""
    heard, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(heard)
            work(lambda text: void(os.write(said, text.encode() + b"\n")))
        finally:
            os._exit(0)
    os.close(said)
    return pid, heard


def void(_: object) -> None: ...


def listen(descriptor: int) -> str:
    """Return what a child said, up to the end of its line or its life."""
    text = b""
    while not text.endswith(b"\n") and (byte := os.read(descriptor, 1)):
        text += byte
    return text.decode().strip()


def end(pid: int, descriptor: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(descriptor)


def contend(folder: Path, start: float) -> Callable[[Callable[[str], None]], None]:
    def work(say: Callable[[str], None]) -> None:
        lock = RunLock(folder)
        while time.monotonic() < start:
            pass
        try:
            lock.acquire()
        except RunLockError as error:
            say(f"refused {error}")
        else:
            say("acquired")
            time.sleep(60)

    return work


def test_fifty_races_have_one_winner_each(tmp_path: Path) -> None:
    """The loser names the winner; the winner dies by kill -9, and the next race finds the folder free."""
    for _ in range(50):
        start = time.monotonic() + 0.02
        children = [fork(contend(tmp_path, start)) for _ in range(3)]
        words = [listen(descriptor) for _, descriptor in children]
        winners = [pid for (pid, _), word in zip(children, words, strict=True) if word == "acquired"]
        assert len(winners) == 1, words
        refusals = [word for word in words if word != "acquired"]
        message = (
            f"refused {tmp_path} is being written by process {winners[0]} on {socket.gethostname()}; stop"
        )
        assert all(word.startswith(message) for word in refusals), refusals
        for child in children:
            end(*child)


def test_a_dead_process_leaves_no_lock(tmp_path: Path) -> None:
    pid, descriptor = fork(contend(tmp_path, 0))
    assert listen(descriptor) == "acquired"
    with pytest.raises(RunLockError, match=f"process {pid} on {re.escape(socket.gethostname())}"):
        RunLock(tmp_path).acquire()
    end(pid, descriptor)
    with RunLock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run.lock").read_text()


def test_orphans_do_not_keep_the_lock(tmp_path: Path) -> None:
    """A data worker forked by a run that was killed lives on; the folder is free all the same."""

    def work(say: Callable[[str], None]) -> None:
        lock = RunLock(tmp_path)
        lock.acquire()
        orphan = os.fork()
        if orphan == 0:
            time.sleep(60)
        say(str(orphan))
        time.sleep(60)

    pid, descriptor = fork(work)
    orphan = int(listen(descriptor))
    end(pid, descriptor)
    os.kill(orphan, 0)
    try:
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_stale_text_is_not_a_lock(tmp_path: Path) -> None:
    for text in ("", "garbage", '{"pid": 1, "host": "elsewhere"}', f'{{"pid": {os.getpid()}, "host": "x"}}'):
        (tmp_path / "run.lock").write_text(text)
        with RunLock(tmp_path):
            pass


def test_within_one_process(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "new" / "run")
    with lock:
        with pytest.raises(RunLockError, match="already held by this very object"):
            lock.acquire()
        with pytest.raises(RunLockError, match=f"is being written by process {os.getpid()}"):
            RunLock(tmp_path / "new" / "run").acquire()
    with pytest.raises(ZeroDivisionError), lock:
        _ = 1 / 0
    with RunLock(tmp_path / "new" / "run"):
        pass


def test_a_holder_that_is_just_leaving_is_waited_for(tmp_path: Path) -> None:
    def work(say: Callable[[str], None]) -> None:
        lock = RunLock(tmp_path)
        lock.acquire()
        (tmp_path / "run.lock").write_text("")  # the moment between the kernel's lock and the text
        say("acquired")
        time.sleep(0.3)
        lock.release()
        time.sleep(60)

    pid, descriptor = fork(work)
    assert listen(descriptor) == "acquired"
    with RunLock(tmp_path):
        pass
    end(pid, descriptor)


def test_a_nameless_holder_is_refused_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformer.training.lock._PATIENCE", 0.1)
    with RunLock(tmp_path):
        (tmp_path / "run.lock").write_text("")
        with pytest.raises(RunLockError, match="is being written by another process; stop it first"):
            RunLock(tmp_path).acquire()
