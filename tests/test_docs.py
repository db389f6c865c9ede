"""The pages of docs/enhancements and docs/models: examples run, files exist, nothing is left out of the index."""

from __future__ import annotations

import ast
import doctest
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch

from transformer.enhancements import SWITCHES

ROOT = Path(__file__).resolve().parents[1]
PAGES_FOLDER = ROOT / "docs" / "enhancements"
PACKAGE = ROOT / "src" / "transformer"
INDEX = PAGES_FOLDER / "README.md"
PAGES = sorted(page for page in PAGES_FOLDER.glob("*.md") if page != INDEX)
AREAS = sorted(path.name for path in (PACKAGE / "enhancements").iterdir() if (path / "__init__.py").exists())
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODELS = sorted((ROOT / "docs" / "models").glob("*.md"))
TOPICS = sorted(page for page in (ROOT / "docs").glob("*.md") if ">>> " in page.read_text(encoding="utf-8"))
each_page = pytest.mark.parametrize(
    "page", [*PAGES, INDEX, *MODELS, *TOPICS], ids=lambda page: f"{page.parent.name}/{page.stem}"
)


# ---------------------------------------------------------------- examples


def examples(text: str) -> str:
    """The page with every line blank that stands outside a ```python fence: line numbers stay."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        inside = inside and not fence
        lines.append(line if inside else "")
        inside = inside or line.strip() == "```python"
    return "\n".join(lines)


def run(text: str, name: str) -> tuple[int, str]:
    """Run the examples of a page in one fresh namespace; the number of them, and what went wrong."""
    test = doctest.DocTestParser().get_doctest(examples(text), {"__name__": "__main__"}, name, name, 0)
    report: list[str] = []
    precision, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.manual_seed(0)
    try:
        result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    finally:
        torch.set_default_dtype(precision)
        torch.set_grad_enabled(grad)
    return result.attempted, "".join(report)


@each_page
def test_examples_run_and_print_what_the_page_says(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    attempted, report = run(page.read_text(encoding="utf-8"), page.name)
    assert not report, report
    assert page not in PAGES or attempted >= 2, f"{page.name} has no example"


@each_page
def test_python_fences_are_examples(page: Path) -> None:
    """A fence without a prompt is not run, so nobody would see it grow old."""
    for fence in re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        assert ">>> " in fence, f"{page.name}: this example has no prompts:\n{fence}"


@pytest.mark.parametrize(
    ("example", "complaint"),
    [
        (">>> 1 + 1\n3", "Expected:\n    3\nGot:\n    2"),
        (">>> torch.ones(1)\ntensor([2.])", "NameError"),
        (">>> import torch\n>>> torch.rand(1) < 0\ntensor([True])", "tensor([False])"),
    ],
)
def test_a_wrong_example_would_be_found(example: str, complaint: str) -> None:
    page = f"Some words.\n\n```python\n>>> x = 1\n```\n\nOthers.\n\n```python\n{example}\n```\n"
    assert complaint in run(page, "page")[1]
    assert run(page.replace("```python", "```"), "page") == (0, "")


def test_each_page_has_a_namespace_and_a_seed_of_its_own() -> None:
    page = "```python\n>>> import torch\n>>> x = torch.rand(())\n```\n\n```python\n>>> print(f'{x:.4f}')\n0.4963\n```"
    assert run(page, "page") == run(page, "page") == (3, "")
    assert "NameError" in run("```python\n>>> x\n```", "page")[1]


# ---------------------------------------------------------------- files


def missing_files(text: str, page: Path) -> list[str]:
    """The links and Python files that a page names, outside its examples, and that are not there."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    folders = (ROOT / name for name in ("src", "tests", "benchmarks", "experiments"))
    known = {path.name for folder in folders for path in folder.rglob("*.py")}
    for name in re.findall(r"`([\w./-]+\.py)\b[^`]*`", text):
        bases = (ROOT, PACKAGE, PACKAGE / "enhancements", ROOT / "src")
        found = name in known if "/" not in name else any((base / name).exists() for base in bases)
        missing += [] if found else [name]
    return missing


@each_page
def test_files_that_a_page_names_exist(page: Path) -> None:
    assert not missing_files(page.read_text(encoding="utf-8"), page)


def test_a_missing_file_would_be_found() -> None:
    text = "`glu.py`, `base/wiring.py`, [x](../notation.md), `no_such.py`, `base/glu.py`, [y](none.md), [z](https://a.b/c)"
    assert missing_files(text, PAGES[0]) == ["none.md", "no_such.py", "base/glu.py"]


def kinds(module: Path) -> list[str]:
    """The names of the configs with a kind, which a config file can name, in a module."""
    return [
        node.name
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "kind" for line in node.body)
    ]


def parts() -> list[Path]:
    """The modules of the enhancements that define such a config."""
    modules = [path for area in AREAS for path in sorted((PACKAGE / "enhancements" / area).glob("*.py"))]
    return [path for path in modules if kinds(path)]


@cache
def file_names() -> Counter[str]:
    """How many modules of the package have each file name."""
    return Counter(path.name for path in PACKAGE.rglob("*.py"))


def named(part: Path, text: str) -> bool:
    """Whether a text names the module; a file name that two areas use must come with its area."""
    name = part.name if file_names()[part.name] == 1 else f"{part.parent.name}/{part.name}"
    return re.search(rf"(?<![\w]){re.escape(name)}", text) is not None


@pytest.mark.parametrize("part", parts(), ids=lambda part: f"{part.parent.name}/{part.stem}")
def test_every_part_has_a_page(part: Path) -> None:
    assert any(named(part, page.read_text(encoding="utf-8")) for page in PAGES), (
        f"no page in docs/enhancements names {part.parent.name}/{part.name}"
    )


def test_a_part_without_a_page_would_be_found() -> None:
    part = PACKAGE / "enhancements" / "feed_forward" / "glu.py"
    assert part in parts() and PACKAGE / "enhancements" / "feed_forward" / "__init__.py" not in parts()
    assert named(part, "see `glu.py`") and named(part, "[x](../feed_forward/glu.py)")
    assert not named(part, "see `reglu.py` and glu")


# ---------------------------------------------------------------- the index


def rows() -> list[list[str]]:
    """The rows of the index's tables: idea, paper, flag, file, page."""
    lines = [line for line in INDEX.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "idea" and not set(row[0]) <= set(":-")]


def test_the_index_has_five_columns() -> None:
    assert len(rows()) >= 10
    assert not [row for row in rows() if len(row) != 5 or not row[0]]


@pytest.mark.parametrize("flag", SWITCHES)
def test_every_switch_is_in_the_index(flag: str) -> None:
    found = [row for row in rows() if f"`{flag}`" in row[2]]
    assert len(found) == 1, f"docs/enhancements/README.md has {len(found)} rows for {flag}"
    for number in re.findall(r"\d{4}\.\d{5}", SWITCHES[flag].doc):
        assert number in found[0][1], f"the row of {flag} does not name arXiv {number}"


def test_the_index_names_no_other_switch() -> None:
    named_flags = {flag for row in rows() for flag in re.findall(r"use_\w+", row[2])}
    assert named_flags <= set(SWITCHES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_in_the_index(page: Path) -> None:
    assert any(f"]({page.name})" in row[4] for row in rows()), (
        f"docs/enhancements/README.md has no row for {page.name}"
    )


def test_every_row_of_the_index_has_a_file_and_a_page() -> None:
    for row in rows():
        assert re.search(r"\]\(\.\./\.\./src/transformer/[\w/]+\.py\)", row[3]), row
        assert re.search(r"\]\([\w-]+\.md\)", row[4]), row
