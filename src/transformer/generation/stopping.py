"""Ending a text at a string, wherever its tokens begin and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class StopStrings:
    """Passes a text on piece by piece, up to the first of some strings.

    What could still become one of them is held back, so nothing of it is ever shown: the concatenation of what `push`
    and a last `finish` return is the text before the first stop string, or the whole text. Of stop strings that end at
    the same place the one that begins first counts. ValueError for an empty string, which is everywhere.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise ValueError("a stop string must not be empty; leave it out to stop nowhere")
        self.strings, self.done = tuple(strings), False
        self._held = ""

    def push(self, piece: str) -> str:
        """Return what of the text may be shown after this piece; `done` says whether it has ended."""
        text = self._held + piece
        ends = [(place + len(s), place) for s in self.strings if (place := text.find(s)) >= 0]
        if ends and not self.done:
            self.done, self._held = True, ""
            return text[: min(ends)[1]]
        if self.done:
            return ""
        kept = max(self._beginnings(text), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Return what was held back, now that the text has ended without becoming a stop string."""
        held, self._held = self._held, ""
        return held

    def _beginnings(self, text: str) -> Iterator[int]:
        """The lengths of the ends of `text` with which some stop string begins."""
        for string in self.strings:
            for length in range(1, min(len(string), len(text) + 1)):
                if text.endswith(string[:length]):
                    yield length
