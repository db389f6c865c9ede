"""The project's own checkpoints as models: the architecture from `model.json`, the weights from safetensors.

Nothing that is read is trusted. A checkpoint's bytes are verified, its architecture is decoded strictly, and every
tensor's name, shape and type is compared with what that architecture needs before memory is spent on it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..data import Tokenizer, parse_tokenizer
from ..models import KINDS, Model, ModelConfig, build
from ..training import strict_json
from ..training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from ..training.manifest import NAME as MANIFEST
from ..utils.codec import decode, encode, suggest

MODEL_FILE = "model.json"
"""The file of a checkpoint that holds its architecture."""

_TABLE_LIMIT = 2**31  # bytes of tables (of positions, say) that a file can ask for without bringing them
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ModelFile:
    """The content of `model.json`."""

    format: Literal[1]
    config: ModelConfig


def load(path: str | Path, *, ema: bool = True) -> Model:
    """Return the model of a checkpoint, in eval mode and on the CPU.

    path: a run folder: of a finished run the weights that it was judged by (`export/`), else the best checkpoint, or
    the newest where none was scored; or one checkpoint's folder (`…/checkpoints/step-00000500`). ema: take the moving
    average of the weights where there is one, which is what training evaluates; false takes the weights that training
    left off at.

    ValueError in one line for anything else, naming the file, key or tensor and what it should have been.
    """
    checkpoint = _open(Path(path))
    config = _read_config(checkpoint)
    tensors = checkpoint.tensors("model")
    if ema and "ema.safetensors" in checkpoint.names:
        tensors |= checkpoint.tensors("ema")
    where = str(checkpoint.path)
    tensors = _fit(tensors, config, where)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn and overwritten: the caller's dice stay
        model = build(config)
    model.load_state_dict(tensors)
    return model.eval()


def tokenizer_file_of(path: str | Path) -> Path | None:
    """Return the file of the tokenizer that `load_tokenizer_of(path)` reads; None where a path is no run of ours."""
    folder = Path(path)
    if folder.suffix == ".gguf" or (
        (folder / "config.json").is_file() and not (folder / "checkpoints").is_dir()
    ):
        return None
    return _open(folder).path / "tokenizer.json"


def load_tokenizer_of(path: str | Path) -> Tokenizer:
    """Return the tokenizer that was saved with the checkpoint which `load(path)` would load."""
    checkpoint = _open(Path(path))
    return parse_tokenizer(checkpoint.file("tokenizer.json"), str(checkpoint.path / "tokenizer.json"))


def model_file(model: Model) -> bytes:
    """Return the content of `model.json`, from which `load` knows the architecture; it holds no choice of execution."""
    return strict_json.encode(encode(_ModelFile(1, model.config)), MODEL_FILE)


def _open(path: Path) -> Checkpoint:
    """Open the checkpoint that a path means."""
    if (path / MANIFEST).exists():
        return CheckpointStore(path.parent).open(path)
    if (path / "export" / "checkpoints").is_dir():  # the weights that a finished run was judged by
        path = path / "export"
    if not (path / "checkpoints").is_dir():
        raise CheckpointError(_explain_nothing(path))
    store = CheckpointStore(path)
    checkpoint = store.best() or store.newest()
    if checkpoint is None:
        raise CheckpointError(f"{path} has no checkpoint yet; train until the first one is saved")
    for reason in checkpoint.skipped:
        _log.warning("passed over: %s", reason)
    return checkpoint


def _explain_nothing(path: Path) -> str:
    """Say in one line why there is nothing to load at a path."""
    if path.suffix == ".gguf":
        return (
            f"{path} looks like a .gguf file, which cannot be loaded yet; give a directory with safetensors"
        )
    if path.is_dir():
        return (
            f"{path} is neither a run folder (it has no checkpoints/) nor a checkpoint (it has no {MANIFEST}); "
            "give the folder that `transformer train` named at its end"
        )
    if path.exists():
        return f"{path} is a file; give the run folder, or the checkpoint's folder, that it lies in"
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{path} does not exist{suggest(path.name, siblings) or '; give a run folder or one of its checkpoints'}"


def _read_config(checkpoint: Checkpoint) -> ModelConfig:
    name = str(checkpoint.path / MODEL_FILE)
    data = strict_json.parse(checkpoint.file(MODEL_FILE), name)
    try:
        return decode(_ModelFile, data, kinds=KINDS).config
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def _fit(tensors: Mapping[str, Tensor], config: ModelConfig, where: str) -> dict[str, Tensor]:
    """Return the tensors under exactly the names that the model has; refuse what does not fit it."""
    try:
        with torch.device("meta"):
            skeleton = build(config)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{where}/{MODEL_FILE} cannot be built: {str(error).splitlines()[0]}") from None
    tables = sum(buffer.nbytes for buffer in skeleton.buffers())
    if tables > _TABLE_LIMIT:
        raise CheckpointError(
            f"{where}/{MODEL_FILE} asks for {tables:,} bytes of tables; check its max_seq_len"
        )
    wanted = skeleton.state_dict(keep_vars=True)
    if missing := wanted.keys() - tensors.keys():
        raise CheckpointError(f"{where} has no tensor {min(missing)!r}{_near(min(missing), tensors)}")
    if unknown := tensors.keys() - wanted.keys():
        raise CheckpointError(
            f"{where} has the tensor {min(unknown)[:200]!r}, which its model does not{_near(min(unknown), wanted)}"
        )
    for name, want in wanted.items():
        if (given := tensors[name]).shape != want.shape or given.dtype != want.dtype:
            raise CheckpointError(
                f"{where}: the tensor {name!r} is {_form(given)}, its model needs {_form(want)}"
            )
    owners = {id(tensor): name for name, tensor in reversed(wanted.items())}
    return {name: tensors[owners[id(tensor)]] for name, tensor in wanted.items()}


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _near(name: str, names: Mapping[str, object]) -> str:
    near = get_close_matches(name[:200], names, n=1)
    return f"; the nearest is {near[0][:200]!r}" if near else ""
