"""A small model of every published family of decoders, theirs and ours, in double precision and with short windows."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.interop.huggingface import test_decoders, test_gemma, test_llama_and_gpt2, test_olmo_and_granite
from tests.interop.huggingface.published import VOCAB, all_double, published
from transformer import load

ALL: dict[str, Any] = {
    **test_llama_and_gpt2.CONFIGS,
    **test_decoders.CONFIGS,
    **test_gemma.CONFIGS,
    **test_olmo_and_granite.CONFIGS,
}
NAMES = (
    "llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gptj", "opt", "bloom", "gpt_neo", "falcon",
    "falcon, new", "mpt", "phi", "stablelm, parallel", "gemma", "gemma2", "gemma3", "olmo", "olmo2", "granite",
)  # fmt: skip
WINDOW = 5
"""Keys that local layers see: short, so that a few tokens are three times as many."""


def short(config: Any) -> Any:
    """The config with short windows, where it has any."""
    config = deepcopy(config)
    for name in ("sliding_window", "window_size"):
        if getattr(config, name, None) is not None:
            setattr(config, name, WINDOW)
    return config


def pair(name: str, folder: Path) -> Iterator[tuple[Any, Any]]:
    """Their model and ours. Only what is done while this generator waits is in double precision throughout."""
    with all_double():
        theirs = test_decoders.exact(published(short(ALL[name]), folder, torch.float64))
        yield theirs, load(folder, dtype=torch.float64)


def prompts(lengths: tuple[int, ...] = (3, 7, 5)) -> tuple[Tensor, Tensor]:
    """Prompts of unlike lengths, padded on the left."""
    width = max(lengths)
    tokens = torch.randint(3, VOCAB, (len(lengths), width), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return tokens.masked_fill(mask == 0, 0), mask
