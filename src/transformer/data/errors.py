"""The one error of the data layer, and the words it is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be used; its one-line message names the file, the place in it and the next step."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `"; the nearest is 'x'"` for the closest of `names`, or nothing when none is close."""
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    return f"; the nearest is {close[0]!r}" if close else ""
