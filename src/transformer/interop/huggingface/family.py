"""What there is to know of a published family: its attributes and its weights, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...models import DecoderOnlyConfig, ModelConfig
from .attributes import Attributes
from .weights import Rule


class OtherFamilyError(Exception):
    """A config that a family cannot express; the reason is the message."""


@dataclass(frozen=True)
class Family:
    """A family of published models.

    model_type, architecture: its names in `config.json`. read: the config that attributes describe. write: the
    attributes that describe a config; raises `OtherFamilyError`. rules: of the weights of a config's model. prefix: of
    the names of all weights but the head's; some checkpoints leave it out. ignored: ends of names that hold no weights
    of ours. complete: the config, told the names of all tensors, where these say more than the attributes. rename: the
    name that a tensor has today. kind: of config that it describes. dialect: the end of a name, and the rules of files
    in which a tensor's name ends so.
    """

    model_type: str
    architecture: str
    read: Callable[[Attributes], ModelConfig]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], Sequence[Rule]]
    prefix: str = "model."
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    complete: Callable[[Any, frozenset[str]], ModelConfig] | None = None
    rename: Callable[[str], str] = str
    kind: type[ModelConfig] = DecoderOnlyConfig
    dialect: tuple[str, Callable[[Any], Sequence[Rule]]] | None = None

    def rules_for(self, config: Any, names: Iterable[str]) -> Sequence[Rule]:
        """The rules of a file that has tensors of these names."""
        if self.dialect is not None and any(name.endswith(self.dialect[0]) for name in names):
            return self.dialect[1](config)
        return self.rules(config)


def require(condition: object, reason: str) -> None:
    """Raise `OtherFamilyError` unless the condition holds."""
    if not condition:
        raise OtherFamilyError(reason)
