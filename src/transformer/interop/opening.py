"""Open a model, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..models import Model
from . import native
from .gguf import load_gguf
from .huggingface import load_huggingface
from .huggingface.directory import CONFIG


def load(path: str | Path, *, ema: bool = True, dtype: torch.dtype | None = None) -> Model:
    """Return the model at a path, in eval mode and on the CPU.

    path: a run folder or one of its checkpoints, as `native.load` says, which `ema` is for; or a directory of a
    published model, with `config.json` and safetensors, in one file or in shards; or a `.gguf` file. dtype: of the
    weights; null is as they were saved in a run, and float32 for published models.

    ValueError in one line for anything else, naming the file, key, attribute or tensor and what it should have been.
    """
    folder = Path(path)
    if folder.suffix == ".gguf":
        return load_gguf(folder, dtype or torch.float32)
    if (folder / CONFIG).is_file() and not (folder / "checkpoints").is_dir():
        return load_huggingface(folder, dtype or torch.float32)
    model = native.load(folder, ema=ema)
    return model if dtype is None else model.to(dtype)
