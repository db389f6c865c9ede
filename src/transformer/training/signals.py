"""Being told to stop: the first signal asks for an orderly end, the second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(BaseException):
    """Raised inside `StopSignals.attempt` only: the work in hand is dropped, the run is saved."""


class StopSignals:
    """Remember the first of SIGTERM, SIGINT, SIGUSR1 while the `with` block runs, as `received`.

    A second signal raises SystemExit(128 + number) on the spot, which no `except Exception` holds up.
    Outside the main thread Python allows no handlers, and none are set.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._abandoning = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return what `work` returns, or None when a signal came: for long work that can be done again.

        Leaving it at once is what keeps an evaluation of minutes inside a scheduler's grace of seconds.
        """
        try:
            try:
                self._abandoning = True
                return None if self.received is not None else work()
            finally:
                self._abandoning = False
        except Interrupted:
            return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = signal.Signals(number)
        if self._abandoning:
            raise Interrupted
