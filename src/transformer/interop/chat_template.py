"""Where published models keep their chat template, and the special tokens that it may name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..training import strict_json
from ..training.strict_json import CheckpointError
from .gguf_header import read_header
from .published_tokenizer import SETTINGS, PublishedTokenizer

FILE, OLD_FILE = "chat_template.jinja", "chat_template.json"


def load_template_of(path: str | Path) -> str:
    """Return the chat template of a published model: of its directory, or inside a `.gguf` file.

    ValueError in one line for a model that has none.
    """
    folder = Path(path)
    if folder.suffix == ".gguf":
        found = read_header(folder).settings.get("tokenizer.chat_template")
    elif (folder / FILE).exists():
        found = _text(folder / FILE)
    else:
        found = _chosen(_table(folder / OLD_FILE).get("chat_template")) or _chosen(
            _table(folder / SETTINGS).get("chat_template")
        )
    if not isinstance(found, str) or not found:
        raise CheckpointError(
            f"{folder} has no chat template, so it was not made for chat; use transformer generate"
        )
    return found


def names_of(tokenizer: PublishedTokenizer) -> Mapping[str, str]:
    """Return the special tokens that a template may name, as they are spelled."""
    ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    return {name: tokenizer.special_name(token) for name, token in ids.items()}


def _text(path: Path) -> str:
    try:
        return strict_json.read(path).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not text in UTF-8") from None


def _table(path: Path) -> Mapping[str, Any]:
    data = strict_json.parse(strict_json.read(path), str(path)) if path.exists() else {}
    return data if isinstance(data, dict) else {}


def _chosen(value: Any) -> Any:
    """The template, or of several the one that is called `default`."""
    if not isinstance(value, list):
        return value
    named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    return named.get("default")
