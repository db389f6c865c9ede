"""The examples of docs/generation.md run, and print what it says."""

from __future__ import annotations

import pytest

from tests.test_docs import ROOT, missing_files, run

PAGE = ROOT / "docs" / "generation.md"


def test_the_examples_print_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    attempted, report = run(PAGE.read_text(encoding="utf-8"), PAGE.name)
    assert not report, report
    assert attempted >= 12


def test_the_files_it_names_exist() -> None:
    assert not missing_files(PAGE.read_text(encoding="utf-8"), PAGE)
