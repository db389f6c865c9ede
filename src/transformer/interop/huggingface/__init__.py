"""The world's checkpoints: directories with `config.json` and safetensors, read and written without `transformers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ...models import KINDS, Model, ModelConfig
from ...training.strict_json import CheckpointError
from ...utils.codec import decode, encode, suggest
from . import (
    bart,
    bert,
    bloom,
    deepseek,
    distilbert,
    electra,
    falcon,
    gemma,
    gpt2,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    jamba,
    llama,
    mamba,
    marian,
    mixtral,
    mpnet,
    mpt,
    olmo,
    opt,
    phi,
    qwen_moe,
    recurrent_gemma,
    stablelm,
    t5,
)
from .attributes import Attributes
from .directory import Shards, read_attributes, write_directory
from .family import Family, OtherFamilyError, require
from .hollow import build_hollow
from .spelt_out import spelt_out
from .weights import read_weights, write_weights

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for part in (
            gpt2,
            llama,
            gpt_neox,
            gptj,
            opt,
            bloom,
            gpt_neo,
            falcon,
            phi,
            stablelm,
            mpt,
            gemma,
            bert,
            bart,
            marian,
            granite,
            olmo,
            distilbert,
            electra,
            mpnet,
            t5,
            mixtral,
            qwen_moe,
            deepseek,
            gpt_oss,
            mamba,
            jamba,
            recurrent_gemma,
        )
        for family in part.FAMILIES
    }
)
"""The families that can be loaded and saved, by their name in `config.json`."""


def load_huggingface(path: Path, dtype: torch.dtype = torch.float32) -> Model:
    """Return the model of a directory, in eval mode and on the CPU; `load` is the public name."""
    attributes = read_attributes(path)
    family = FAMILIES.get(attributes.model_type)
    if family is None:
        near = suggest(attributes.model_type, FAMILIES) or f" (known: {', '.join(sorted(FAMILIES))})"
        raise attributes.fault(f"has model_type {attributes.model_type[:80]!r}, which is not known{near}")
    try:
        source = _Renamed(Shards(path), family)
        attributes.bound(len(source.names), source.size)
        config = family.read(attributes)
        if family.complete is not None:
            config = family.complete(config, source.names)
        decode(type(config), encode(config), kinds=KINDS)  # numbers within the bounds of each part
        model = build_hollow(config, dtype, source.size)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = (str(error).splitlines() or ["it does not fit into memory"])[0]
        raise attributes.fault(f"describes a model that cannot be built: {reason}") from None
    tied = {"lm_head.weight"} if config.tie_embeddings else set()
    rules = family.rules_for(config, source.names)
    read_weights(model, rules, source, lambda name: name in tied or name.endswith(family.ignored))
    return model.eval()


def to_huggingface(model: Model, directory: str | Path, *, model_type: str | None = None) -> Path:
    """Write the model as a directory that `transformers.AutoModel*.from_pretrained` loads; return the directory.

    The family is that of `model_type`, or the first that can express the model's architecture; ValueError if none can.
    """
    if model_type is not None and model_type not in FAMILIES:
        near = suggest(model_type, FAMILIES) or f"; known are {', '.join(sorted(FAMILIES))}"
        raise ValueError(f"there is no family {model_type!r}{near}")
    reasons = []
    for family in FAMILIES.values() if model_type is None else [FAMILIES[model_type]]:
        try:
            require(isinstance(model.config, family.kind), f"it is not {family.kind.kind}")
            attributes = family.write(model.config)
            described = {"model_type": family.model_type, **attributes}
            meant = family.read(Attributes(described, ""))
            if family.complete is not None:
                names = (name for rule in family.rules(model.config) for name in rule.theirs)
                meant = family.complete(meant, frozenset(names))
            if spelt_out(_without_first_weights(meant, model)) != spelt_out(model.config):
                raise OtherFamilyError("it has parts that the family has not")
        except (OtherFamilyError, ValueError, AttributeError) as reason:
            reasons.append(f"{family.model_type}: {reason}")
            continue
        dtype = str(_dtype(model)).removeprefix("torch.")
        described = {"architectures": [family.architecture], "dtype": dtype, **described}
        tensors: dict[str, Tensor] = dict(write_weights(model, family.rules(model.config)))
        write_directory(Path(directory), described, tensors)
        return Path(directory)
    raise ValueError(f"no published family has this architecture ({'; '.join(reasons)})")


class _Renamed:
    """The tensors of a directory by the names of today, with the prefix that some checkpoints leave out."""

    def __init__(self, shards: Shards, family: Family) -> None:
        self.where, self._shards, prefix = shards.where, shards, family.prefix
        bare = not any(name.startswith(prefix) for name in shards.names)
        self._names: dict[str, str] = {}
        for name in sorted(shards.names):
            whole = family.rename(f"{prefix}{name}" if bare and not name.startswith("lm_head.") else name)
            if whole in self._names:
                raise CheckpointError(
                    f"{shards.where} has the tensor {name[:200]!r} twice, once as {self._names[whole][:200]!r}"
                )
            self._names[whole] = name

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._names)

    @property
    def size(self) -> int:
        return self._shards.size

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shards.shape(self._names[name])

    def get(self, name: str) -> Tensor:
        return self._shards.get(self._names[name])

    def pieces(self, name: str) -> Iterator[Tensor]:
        return self._shards.pieces(self._names[name])


def _without_first_weights(config: ModelConfig, model: Model) -> ModelConfig:
    """The config with the model's own rule for first weights, which no published config says."""
    return replace(config, initialization=model.config.initialization)  # type: ignore[arg-type]


def _dtype(model: Model) -> torch.dtype:
    return next(model.parameters()).dtype


__all__ = ["FAMILIES", "load_huggingface", "to_huggingface"]
