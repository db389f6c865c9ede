"""Small data sets for the tests of this folder."""

from __future__ import annotations

import os
import random
from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
"""For other processes: finds the package from a checkout as well as when installed."""

WORDS = ["der", "ein", "Hund", "läuft", "über", "Straße", "und", "sieht", "zwei", "Männer", "im", "Park"]


def sentences(count: int, seed: int, longest: int = 14) -> list[str]:
    """Random sentences of 1 to `longest` words, all of them different in number and length."""
    random_ = random.Random(seed)
    return [f"{' '.join(random_.choices(WORDS, k=random_.randint(1, longest)))} {i}." for i in range(count)]


def write_parallel(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """Write a parallel corpus, by default with train, val and test_2016_flickr."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (counts or {"train": 500, "val": 60, "test_2016_flickr": 40}).items():
        for seed, language in enumerate(("de", "en")):
            text = "\n".join(sentences(count, seed)) + "\n"
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    return folder
