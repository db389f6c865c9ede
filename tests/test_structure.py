"""The project's shape: who may import whom, how long things are, and which words are used."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "transformer"
MODULES = sorted(PACKAGE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES, FORWARD_LINES, UTILS_LINES = 400, 40, 25, 300

Function = ast.FunctionDef | ast.AsyncFunctionDef
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(path: Path, kind: type | tuple[type, ...]) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, kind))


def functions(path: Path) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree_of(path)) if isinstance(node, Function))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def code_lines(path: Path) -> int:
    """Lines that hold code: not blank, not a comment, not a docstring."""
    source = path.read_text(encoding="utf-8")
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*skipped, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def length(function: Function) -> int:
    """Lines of a function without its decorators and docstring."""
    total = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        total -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return total


def axis_strings(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """The shapes in jaxtyping annotations such as `Float[Tensor, "b t d"]`."""
    dtypes = {"Float", "Int", "Integer", "Bool", "Num", "Shaped", "Inexact", "Complex", "UInt", "Real"}
    for node in nodes(path, ast.Subscript):
        assert isinstance(node, ast.Subscript)
        if isinstance(node.value, ast.Name) and node.value.id in dtypes and isinstance(node.slice, ast.Tuple):
            shape = node.slice.elts[-1]
            if isinstance(shape, ast.Constant) and isinstance(shape.value, str):
                yield node, shape.value


def legend() -> set[str]:
    """The axis letters in the table of docs/notation.md."""
    axes = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8").partition("## Names")[0]
    return set(re.findall(r"\| `([a-z])` \|", axes))


def unknown_axes(shape: str, known: set[str]) -> set[str]:
    tokens = [token for token in shape.split() if token != "..." and not token.startswith("*")]
    names = {name for token in tokens for name in re.findall(r"[A-Za-z_]\w*", token)}
    return names - known - {"_"}


# ---------------------------------------------------------------- who imports whom


def test_imports_point_downward() -> None:
    run = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()", "--no-cache"]
    done = subprocess.run(
        run, cwd=ROOT, env={"PYTHONPATH": "src", "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


@each_module
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    for node in nodes(path, (ast.Import, ast.ImportFrom)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert isinstance(node, ast.ImportFrom)
            names = [node.module or ""] if node.level == 0 else []
        for name in names:
            assert name.split(".")[0] not in ("transformer", "src"), (
                f"{place(path, node)}: import it relatively"
            )


def test_both_spellings_of_the_package_import_every_module() -> None:
    walk = (
        "import importlib, pkgutil, sys\n"
        "for name in ('transformer', 'src.transformer'):\n"
        "    root = importlib.import_module(name)\n"
        "    for module in pkgutil.walk_packages(root.__path__, name + '.'):\n"
        "        if module.name.endswith(('__main__', 'evaluation.harness')): continue\n"  # the latter needs an extra
        "        importlib.import_module(module.name)\n"
        "    print(sum(m.startswith(name + '.') for m in sys.modules))\n"
    )
    run = [sys.executable, "-c", walk]
    done = subprocess.run(run, cwd=ROOT, env={"PYTHONPATH": "src:."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = [int(word) for word in done.stdout.split()]
    assert counts[0] == counts[1] > 3


# ---------------------------------------------------------------- how long things are


@each_module
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, (
        f"{path.relative_to(ROOT)} has {lines} lines, at most {FILE_LINES} are read easily"
    )


@each_module
def test_functions_are_short(path: Path) -> None:
    for function in functions(path):
        limit = FORWARD_LINES if function.name == "forward" else FUNCTION_LINES
        assert length(function) <= limit, (
            f"{place(path, function)}: {function.name} has {length(function)} lines, at most {limit}"
        )


def test_utils_stay_small() -> None:
    total = sum(code_lines(path) for path in (PACKAGE / "utils").glob("*.py"))
    assert total <= UTILS_LINES, f"utils hold {total} lines of code, at most {UTILS_LINES}"


# ---------------------------------------------------------------- how things are said


@each_module
def test_the_library_has_no_print_no_global_and_no_setting_by_environment(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        assert not isinstance(node, ast.Global), f"{place(path, node)}: no global state"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", (
                f"{place(path, node)}: print belongs to nobody; use a console or logging"
            )
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv", "putenv"), (
                f"{place(path, node)}: no setting by environment"
            )


@each_module
def test_keyword_catch_alls_are_typed_switches_only(path: Path) -> None:
    for function in functions(path):
        catch_all = function.args.kwarg
        if catch_all is not None:
            typed = catch_all.annotation is not None and "Unpack[" in ast.unparse(catch_all.annotation)
            assert typed, f"{place(path, function)}: **{catch_all.arg} must be Unpack[…] of a TypedDict"


@each_module
def test_forward_does_not_branch_on_configuration(path: Path) -> None:
    for function in functions(path):
        if function.name != "forward":
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.If | ast.IfExp | ast.Match | ast.While):
                test = ast.unparse(node.subject if isinstance(node, ast.Match) else node.test)
                branches = re.search(r"\bconfig\b|\.use_|\bisinstance\b|\bkind\b", test)
                assert not branches, f"{place(path, node)}: forward branches on configuration: {test}"


@each_module
def test_axes_are_in_the_legend(path: Path) -> None:
    for node, shape in axis_strings(path):
        unknown = unknown_axes(shape, legend())
        assert not unknown, f"{place(path, node)}: {sorted(unknown)} of {shape!r} is not in docs/notation.md"


def test_the_legend_is_whole_and_the_axis_check_can_fail() -> None:
    assert legend() == set("btsdhkgefvxcnipw")
    assert unknown_axes("*batch #b t+1 2 ... _ s-t", legend()) == set()
    assert unknown_axes("b q d_model", legend()) == {"q", "d_model"}


def test_nothing_names_a_place_on_one_machine() -> None:
    folders = ["src", "tests", "docs", "configs", "experiments", "benchmarks", ".ci"]
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".ipynb", ""}
    inside = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    top = [p for p in ROOT.iterdir() if p.suffix in suffixes and not p.name.startswith(".git")]
    places = re.compile("|".join(("/" + "work/", "/" + "root/", "/" + "home/[a-z]", r"\bC:" + r"\\Users")))
    for path in (p for p in [*inside, *top] if p.is_file() and "__pycache__" not in p.parts):
        found = places.search(path.read_text(encoding="utf-8", errors="replace"))
        assert found is None, (
            f"{path.relative_to(ROOT)} names a place on one machine: {found and found.group()}"
        )
