"""docs/architecture.md names functions on the way from YAML to logits: each of them exists."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
NAMES = sorted(set(re.findall(r"`(transformer(?:\.\w+)+)`", PAGE.read_text(encoding="utf-8"))))


def resolve(name):
    """Import the longest module that the name begins with, and follow the rest as attributes."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise AssertionError(name)


def test_the_page_names_the_whole_way():
    assert len(NAMES) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name):
    assert resolve(name) is not None


def test_a_wrong_name_would_be_found():
    with pytest.raises(AttributeError):
        resolve("transformer.base.stack.Stack.no_such_method")
