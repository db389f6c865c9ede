"""The table of families: each that can be loaded is in it, because a test compared it, and its figures are small."""

from __future__ import annotations

from tests.interop.huggingface.measured import PAGE, rows
from transformer.interop.huggingface import FAMILIES


def test_every_family_has_a_row_and_the_figures_are_within_the_tolerances() -> None:
    table = rows(PAGE.read_text(encoding="utf-8"))
    missing = sorted(FAMILIES.keys() - table.keys())
    assert not missing, f"run make family-table: {', '.join(missing)} are not in it"
    assert table.keys() == FAMILIES.keys()
    for family, (loads, saves, logit_single, logit_double, gradient_single, gradient_double) in table.items():
        assert (loads, saves) == ("yes", "yes"), family
        assert float(logit_single) <= 1e-4 and float(gradient_single) <= 1e-4, (
            family
        )  # 1e-5 of the largest logit
        assert not logit_double or float(logit_double) <= 1e-10, family
        assert not gradient_double or float(gradient_double) <= 1e-10, family
