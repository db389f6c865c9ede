"""The composition root: from a run's configuration to everything built, trained and evaluated."""

from .config import RunConfig, decode_run, encode_run, read_run
from .train import Outcome, Parts, build_parts, evaluate_parts, train

__all__ = [
    "Outcome",
    "Parts",
    "RunConfig",
    "build_parts",
    "decode_run",
    "encode_run",
    "evaluate_parts",
    "read_run",
    "train",
]
