"""What a run must remember besides its tensors. It is little: data order and randomness are functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch


@dataclass
class Interval:
    """Sums since the last log, so that a resumed run logs what an uninterrupted one does."""

    loss: float = 0.0
    nll: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    spikes: int = 0


@dataclass
class RunState:
    """The numbers of a run after `step` optimizer steps.

    tokens: counted targets so far; seconds: spent in training steps; skipped_in_a_row: updates that were
    left out just now; recent_losses: the window of the spike detector.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped_in_a_row: int = 0
    interval: Interval = field(default_factory=Interval)
    recent_losses: list[float] = field(default_factory=list)

    def encode(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> RunState:
        """Raise ValueError where an entry is missing, as in a checkpoint that training did not write."""
        if missing := {entry.name for entry in fields(cls)} - data.keys():
            raise ValueError(f"the checkpoint's state.json has no {min(missing)!r}; it cannot be resumed")
        values = {entry.name: data[entry.name] for entry in fields(cls)}
        return cls(**{**values, "interval": Interval(**values["interval"])})


def environment() -> dict[str, str]:
    """Return what decides the last bits of a result besides the run itself."""
    return {"threads": str(torch.get_num_threads()), "torch": torch.__version__}


def refuse_difference(then: Mapping[str, str], now: Mapping[str, str], where: str) -> None:
    """Raise ValueError if the run that made a checkpoint was another one, naming both sides."""
    for name in sorted(then.keys() | now.keys()):
        was, is_now = then.get(name, "none"), now.get(name, "none")
        if was != is_now:
            raise ValueError(
                f"cannot resume {where}: its {name} is {was}, this run's is {is_now}; "
                f"restore the former {name}, or train into a new output.dir"
            )


def describe_difference(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return one line for each part of the environment that changed."""
    return [
        f"{name} was {then.get(name)} and is now {now[name]}: results will differ in the last bits"
        for name in sorted(now)
        if then.get(name) != now[name]
    ]
