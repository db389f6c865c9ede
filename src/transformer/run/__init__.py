"""The composition root: from a run's configuration to everything built, trained and evaluated."""

from .beginning import open_corpus
from .config import RunConfig, decode_run, encode_run, read_run
from .parts import Parts, build_parts
from .tasks import DATA
from .train import Outcome, train

__all__ = [
    "DATA",
    "Outcome",
    "Parts",
    "RunConfig",
    "build_parts",
    "decode_run",
    "encode_run",
    "open_corpus",
    "read_run",
    "train",
]
