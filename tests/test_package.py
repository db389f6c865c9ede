"""The public names, and what importing the package costs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import transformer

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("package", ["transformer", "src.transformer"])
def test_importing_the_package_imports_no_torch(package: str) -> None:
    check = (
        f"import sys, {package} as t; assert dir(t) and t.__all__; "
        "sys.stdout.write(' '.join(sorted({'torch', 'numpy', 'rich', 'pydantic'} & sys.modules.keys())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, env={"PYTHONPATH": "src:."}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_names_are_those_of_the_modules() -> None:
    assert transformer.__all__ == ["BERT", "GPT", "T5", "LLaMA", "Mamba", "Transformer", "load"]
    assert set(transformer.__all__) <= set(dir(transformer))
    for module, name in (("models", "GPT"), ("models", "Transformer"), ("interop", "load")):
        home = importlib.import_module(f"transformer.{module}")
        assert getattr(transformer, name) is getattr(home, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Transfomer", "module 'transformer' has no attribute 'Transfomer'; did you mean 'Transformer'?"),
        ("gpt", "module 'transformer' has no attribute 'gpt'; did you mean 'GPT'?"),
        (
            "zzz",
            "module 'transformer' has no attribute 'zzz'; it has BERT, GPT, T5, LLaMA, Mamba, Transformer, load",
        ),
        ("__wrapped__", "module 'transformer' has no attribute '__wrapped__'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(transformer, name)
    assert str(caught.value) == message
