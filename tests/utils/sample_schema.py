"""A small configuration with every shape the codec knows, for tests that need no Transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen

Positive = Annotated[int, Ge(1)]
Rate = Annotated[float, Gt(0), Le(1)]


class Mixer(ABC):
    """An abstract socket: what fills it is named by `kind`."""

    @abstractmethod
    def size(self) -> int: ...


@dataclass(frozen=True)
class Attention(Mixer):
    kind: ClassVar[str] = "attention"
    heads: Positive = 8
    width: Positive = 64

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    def size(self) -> int:
        return self.width


@dataclass(frozen=True)
class Recurrent(Mixer):
    kind: ClassVar[str] = "recurrent"
    inner: Mixer
    state: Positive = 16

    def size(self) -> int:
        return self.inner.size()


@dataclass(frozen=True)
class Noam:
    kind: ClassVar[str] = "noam"
    warmup: Positive = 4000
    factor: Rate = 1.0


@dataclass(frozen=True)
class Cosine:
    kind: ClassVar[str] = "cosine"
    peak: Rate
    final: Rate | None = None


@dataclass(frozen=True)
class Training:
    max_steps: Positive = 100
    precision: Literal["float32", "bfloat16"] = "float32"
    resume: Literal["auto", "never"] | Positive = "auto"
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    shuffle: bool = True
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """The root of the sample configuration."""

    layers: Annotated[tuple[Mixer, ...], MinLen(1)] = (Attention(), Recurrent(Attention(4, 32)))
    schedule: Noam | Cosine = field(default_factory=lambda: Noam(warmup=2000))
    training: Training = field(default_factory=lambda: Training(max_steps=7))
    extra: Training | None = None
    weights: tuple[float, ...] = ()


KINDS: dict[str, type] = {cls.kind: cls for cls in (Attention, Recurrent, Noam, Cosine)}
