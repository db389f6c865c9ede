"""Open a model, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..data import Tokenizer, load_tokenizer
from ..models import Model
from ..training import strict_json
from ..training.strict_json import CheckpointError
from . import native
from .gguf import load_gguf
from .huggingface import load_huggingface
from .huggingface.directory import CONFIG
from .llama2c import load_llama2c
from .published_tokenizer import TOKENIZER, read_published
from .vocabulary import read_gguf_tokenizer, read_llama2c_tokenizer


def load(path: str | Path, *, ema: bool = True, dtype: torch.dtype | None = None) -> Model:
    """Return the model at a path, in eval mode and on the CPU.

    path: a run folder or one of its checkpoints, as `native.load` says, which `ema` is for; or a directory of a
    published model, with `config.json` and safetensors, in one file or in shards; or a `.gguf` file; or a `.bin` file
    of llama2.c. dtype: of the weights; null is as they were saved in a run, and float32 for published models.

    ValueError in one line for anything else, naming the file, key, attribute or tensor and what it should have been.
    """
    folder = Path(path)
    if folder.suffix == ".gguf":
        return load_gguf(folder, dtype or torch.float32)
    if folder.suffix == ".bin" and folder.is_file():
        return load_llama2c(folder).to(dtype or torch.float32)
    if is_published(folder):
        return load_huggingface(folder, dtype or torch.float32)
    model = native.load(folder, ema=ema)
    return model if dtype is None else model.to(dtype)


def load_tokenizer_of(path: str | Path) -> Tokenizer:
    """Return the tokenizer of the model at a path, or the one that a `tokenizer.json` holds.

    Of a run, the one that was saved with the checkpoint which `load(path)` would load; of a published model, its
    `tokenizer.json`; of a `.gguf` file, the one inside; of a `.bin` file of llama2.c, the `tokenizer.bin` or
    `tok512.bin` (of 512 tokens, say) that lies beside it. ValueError in one line where there is none.
    """
    folder = Path(path)
    if folder.name.endswith(".json"):
        return _from_json(folder)
    if folder.suffix == ".gguf":
        return read_gguf_tokenizer(folder)
    if folder.suffix == ".bin" and folder.is_file():
        return read_llama2c_tokenizer(_beside(folder))
    if is_published(folder):
        return _from_json(folder / TOKENIZER)
    return native.load_tokenizer_of(folder)


def is_published(folder: Path) -> bool:
    """Whether a folder holds a published model, rather than a run of this project."""
    return (folder / CONFIG).is_file() and not (folder / "checkpoints").is_dir()


def _from_json(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`, which has one name and two formats: this project's, and that of the library."""
    if not path.exists():
        raise CheckpointError(
            f"{path.parent} has no {path.name}; copy the model's into it, or name another model's with --tokenizer"
        )
    if path.stat().st_size <= strict_json.MAX_BYTES and b'"kind"' in path.read_bytes()[:100]:
        return load_tokenizer(path)
    return read_published(path.parent)


def _beside(model: Path) -> Path:
    """The tokenizer of a file of llama2.c."""
    places = [model.parent / "tokenizer.bin", *sorted(model.parent.glob("tok[0-9]*.bin"))]
    found = [place for place in places if place.is_file()]
    if len(found) != 1:
        told = ", ".join(place.name for place in found) or "none"
        raise CheckpointError(f"{model} needs one tokenizer.bin or tok512.bin beside it, and there is {told}")
    return found[0]
