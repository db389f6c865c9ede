"""Beginning a run with the weights and the tokenizer of a model that was trained before (`model.init_from`).

What both models have is taken over: all but the maps on top (to logits, the pooler, to classes), which are taken where
both have them. Architectures that differ in anything else are refused, also where every tensor would fit: with
another number of heads the same weights mean something else.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import BPEConfig, Corpus, LabelledData, SavedConfig, Tokenizer
from ..interop import load, load_tokenizer_of, tokenizer_file_of
from ..models import Model
from ..utils.codec import encode, show
from .config import RunConfig

TOPS = ("lm_head.", "pooler.")
"""Where the modules on top of a model stand, which another task may do without."""

NOT_COMPARED = ("dropout", "initialization", "lm_head", "pooler", "tie_embeddings")
"""Parts of an architecture in which a model and the one that it begins from may differ."""


def open_corpus(config: RunConfig, tokenizer: Path | None) -> Corpus[Any]:
    """Open the data, with the task's special tokens; where no tokenizer is chosen, with that of the file given."""
    data = config.data
    if isinstance(data, LabelledData) and data.tokenizer is None:
        if config.model.init_from is not None and tokenizer is None:
            raise ValueError(
                f"the tokenizer of {config.model.init_from} cannot be read here; set data.tokenizer"
            )
        data = replace(data, tokenizer=BPEConfig() if tokenizer is None else SavedConfig(str(tokenizer)))
    corpus = data.load()
    corpus.add_special_tokens(config.task.special_tokens)
    return corpus


def begin_from(model: Model, source: str, tokenizer: Tokenizer) -> None:
    """Copy into `model` the weights of the model at `source`. ValueError where they do not belong together."""
    given = load(source, dtype=torch.float32)
    if (file := tokenizer_file_of(source)) is not None:
        theirs = load_tokenizer_of(source)
        if theirs.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"init_from {source}: it was trained with another tokenizer ({theirs.vocab_size} tokens) than this "
                f"run's ({tokenizer.vocab_size}); set data.tokenizer: {{kind: saved, path: {file}}}"
            )
    here, there = _body(model), _body(given)
    if difference := _difference(encode(there.config), encode(here.config)):
        raise ValueError(
            f"init_from {source}: {difference}; give the model section and the tokenizer that it was trained with"
        )
    wanted, found = here.state_dict(), there.state_dict()
    new = sorted(name for name in wanted if name not in found)
    assert all(name.startswith(TOPS) for name in new), new
    here.load_state_dict({**wanted, **{name: found[name] for name in wanted if name in found}})


def _body(model: nn.Module) -> Any:
    """The model without what a task put on top."""
    return getattr(model, "encoder", model) if hasattr(model, "score") else model


def _difference(there: Any, here: Any, path: str = "") -> str | None:
    """Say where two architectures first differ, None where they do not."""
    if isinstance(there, dict) and isinstance(here, dict) and there.get("kind") == here.get("kind"):
        for name in (name for name in here if name not in NOT_COMPARED):
            if found := _difference(there.get(name), here[name], f"{path}.{name}" if path else name):
                return found
        return None
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        return next(filter(None, (_difference(a, b, f"{path}[{i}]") for i, (a, b) in pairs)), None)
    return None if there == here else f"its {path} is {_short(there)} and this model's is {_short(here)}"


def _short(value: Any) -> str:
    """A part in a few words."""
    if isinstance(value, dict):
        return str(value.get("kind", "another"))
    return f"{len(value)} long" if isinstance(value, list) else show(value)
