"""What a run's configuration describes, built: data, model, objective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..base.stack import Stack
from ..data import Corpus
from ..evaluation import Report
from ..interop import model_file, tokenizer_file_of
from ..models import Model, build
from ..utils.layering import dump_yaml
from ..utils.rng import derive_seed
from .beginning import begin_from, open_corpus
from .config import BEGINNING, NOWHERE, RunConfig, encode_run, located, require_memory
from .tasks import Task, Work


@dataclass(frozen=True)
class Parts(Work[Any, Any, Any]):
    """What a configuration describes, built."""

    config: RunConfig
    task: Task[Any, Any, Any]
    beginning: str | None = None  # the sha256 of the weights that were taken from another model

    @classmethod
    def of(cls, config: RunConfig, corpus: Corpus[Any], model: Model, beginning: str | None = None) -> Parts:
        """Put together what was built, with the objective that fits the data."""
        task = config.task
        objective = task.prepare(config.objective or task.objective(), corpus)
        return cls(model, corpus, objective, config.evaluation, config.training.seed, config, task, beginning)

    @property
    def split(self) -> str:
        """The split of the final figures."""
        return self.options.split or ("test" if "test" in self.corpus.splits else "validation")

    def report(self, split: str) -> Report:
        """Measure the model on a split as the configuration says; ValueError for a model of another kind."""
        if not isinstance(self.model, self.task.model):
            raise ValueError(
                f"a model of kind {self.model.config.kind} cannot be evaluated on {self.config.data.kind} data; "
                f"{self.task.needs}"
            )
        return self.task.report(self, split)

    def files(self) -> dict[str, bytes]:
        """The files that make a checkpoint complete: with them it is a model that can be used anywhere."""
        return {
            "config.yaml": dump_yaml(encode_run(self.config)).encode(),
            "model.json": model_file(self.model),
            "tokenizer.json": self.corpus.tokenizer.to_bytes(),
        }

    def fingerprints(self) -> dict[str, str]:
        """What must be the same for a run to be resumed: all that decides its numbers, except its length."""
        plain = encode_run(self.config)
        decisive = {key: plain[key] for key in ("model", "data", "objective", "optimizer", "schedule")}
        decisive["model"] = {key: value for key, value in plain["model"].items() if key != BEGINNING}
        decisive["data"] = {
            key: value for key, value in plain["data"].items() if key not in ("path", "cache")
        }
        training = {
            key: plain["training"][key] for key in ("precision", "accumulate", "clip_norm", "ema_decay")
        }
        text = json.dumps({**decisive, "training": training}, sort_keys=True)
        config = hashlib.sha256(text.encode()).hexdigest()
        began = {} if self.beginning is None else {"beginning": self.beginning}
        return {"config": config, "tokenizer": self.corpus.tokenizer.fingerprint, **began}


def build_parts(config: RunConfig, origin: Mapping[str, str] = NOWHERE) -> Parts:
    """Prepare the data and build the model, its first weights drawn from the run's seed.

    Raises `ConfigError`, naming the section and where it was written (`origin`), for data that cannot be used and for
    a model that would not fit the machine's memory.
    """
    with located("model", origin):
        tokenizer = None if config.model.init_from is None else tokenizer_file_of(config.model.init_from)
    with located("data", origin):
        corpus = open_corpus(config, tokenizer)
    with located("model", origin):
        family, execution = config.model.architecture(corpus.tokenizer.vocab_size)
        architecture = config.task.architecture(family, corpus)
        require_memory(architecture)
    torch.manual_seed(derive_seed(config.training.seed, "init"))
    model = build(architecture, config.execution.apply(execution)).to(
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    beginning = None
    if config.model.init_from is not None:
        with located("model", origin):
            begin_from(model, config.model.init_from, corpus.tokenizer)
        beginning = _hash_weights(model)
    parts = Parts.of(config, corpus, model, beginning)
    with located("data", origin):  # refuses data that do not fit the settings, such as too long a context
        parts.task.stream(corpus, parts.objective, config.training.seed)
    with located("model", origin):
        require_length(model, parts.task.longest(corpus))
    return parts


def _hash_weights(model: nn.Module) -> str:
    """Return the sha256 of all weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def require_length(model: nn.Module, longest: int) -> None:
    """Refuse data longer than the model can number, before training instead of in the middle of it."""
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    limits = [stack.position.max_seq_len for stack in stacks if stack.position.max_seq_len is not None]
    if limits and longest > min(limits):
        raise ValueError(
            f"max_seq_len {min(limits)} is less than the {longest} tokens of the longest sequence in the data; "
            f"set model.max_seq_len: {longest} or more"
        )
