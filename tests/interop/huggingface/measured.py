"""How far our models were from the published ones, as the tests that compare them found it.

    python -m tests.interop.huggingface.measured

runs those tests and writes the largest differences of each family into the table of docs/models/README.md
(`make family-table`). A family is in the table because a test compared it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "models" / "README.md"
BEGIN, END = "<!-- families: written by make family-table -->\n", "<!-- families: end -->\n"
HEAD = (
    "| family | loads | saves | max Δlogit fp32 | fp64 | max Δgradient fp32 | fp64 |\n" + "|---" * 7 + "|\n"
)
COLUMNS = [(what, dtype) for what in ("logit", "gradient") for dtype in (torch.float32, torch.float64)]

FOUND: dict[str, dict[tuple[str, torch.dtype], float]] = defaultdict(dict)
SAVED: set[str] = set()


def record(theirs: Any, what: str, expected: Tensor, got: Tensor) -> float:
    """Note the largest difference between two tensors, of `what` of a published model; return it."""
    family, difference = theirs.config.model_type, (expected - got).detach().abs().max().item()
    key = what, expected.dtype
    FOUND[family][key] = max(difference, FOUND[family].get(key, 0.0))
    return difference


def record_saved(theirs: Any) -> None:
    """Note that `transformers` loaded what we saved of this family, and computed the same."""
    SAVED.add(theirs.config.model_type)


def row(family: str) -> str:
    """A family's line of the table."""
    values = (FOUND[family].get(column) for column in COLUMNS)
    cells = ["" if value is None else f"{value:.0e}" if value else "0" for value in values]
    return f"| `{family}` | yes | {'yes' if family in SAVED else 'no'} | {' | '.join(cells)} |\n"


def rows(page: str) -> dict[str, list[str]]:
    """The cells of the table that stands in a page, by family."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


class _Writer:
    """Writes the table when the tests have passed."""

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus == 0:
            before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
            after = rest.partition(END)[2]
            from tests.interop.huggingface import (
                measured,
            )  # what the tests wrote to, not this script's own copy

            table = "".join(measured.row(family) for family in sorted(measured.FOUND))
            PAGE.write_text(before + BEGIN + HEAD + table + END + after, encoding="utf-8")


if __name__ == "__main__":
    here = Path(__file__).parent
    others = [f"--ignore={here / name}" for name in ("test_hostile.py", "test_measured.py")]
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *others, str(here)], plugins=[_Writer()]))
