"""Nothing in the package can run what it reads: no pickle in any form, no eval, no unsafe YAML."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import transformer

PACKAGE = Path(next(iter(transformer.__path__)))
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {
    "torch.load", "torch.save", "torch.jit.load", "torch.export.load", "torch.hub.load",
    "torch.package.PackageImporter", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "pandas.read_pickle", "eval", "exec", "__import__",
}  # fmt: skip


def imported(tree: ast.Module) -> dict[str, str]:
    """Return what every imported local name stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unsafe(source: str) -> Iterator[str]:
    """Yield every import, call or mention that could run data as code."""
    tree = ast.parse(source)
    names = imported(tree)
    yield from (full for full in names.values() if full.split(".")[0] in MODULES)
    for node in ast.walk(tree):
        called = dotted(node, names)
        if called in CALLS:
            yield f"{called}"
        if isinstance(node, ast.Call) and (dotted(node.func, names) or "").startswith("numpy."):
            flags = (keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle")
            yield from ("allow_pickle" for flag in flags if getattr(flag, "value", None) is not False)


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """Return the full name that an expression spells, such as `torch.load`, following import aliases."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_call_that_could_run_data(path: Path) -> None:
    assert list(unsafe(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import joblib",
        "import shelve",
        "import dill",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.save({}, 'x')",
        "from torch import load\nload('x')",
        "from torch import load as get\nget('x')",
        "import torch\nload = torch.load",
        "import torch\ntorch.hub.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy\nnumpy.load('x', allow_pickle=flag)",
        "import yaml\nyaml.load('x')",
        "import yaml\nyaml.unsafe_load('x')",
        "from yaml import full_load as f\nf('x')",
        "eval('1')",
        "exec('1')",
        "f = eval",
        "__import__('os')",
    ],
)
def test_the_check_finds(source: str) -> None:
    assert list(unsafe(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile('x')",
        "import torch\ntorch.compile(f)",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import yaml\nyaml.safe_load('x')",
        "store.load('x')",
    ],
)
def test_the_check_allows(source: str) -> None:
    assert list(unsafe(source)) == []


def test_there_is_something_to_check() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 10
