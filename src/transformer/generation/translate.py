"""Sentences in, sentences out: tokenize, batch by length, search, and put the results back in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data import Tokenizer
from .beam_search import beam_search
from .protocol import EncoderDecoder, State

M = TypeVar("M")
S = TypeVar("S", bound=State)


def translate(
    model: EncoderDecoder[M, S],
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    *,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    max_extra_tokens: int = 50,
    batch_tokens: int = 8192,
    precision: str = "fp32",
) -> list[str]:
    """Return the translation of each sentence, in the order given; that of a blank one is empty.

    beam_size, length_penalty, max_extra_tokens: as for `beam_search`; `beam_size` 1 is greedy. batch_tokens:
    the most padded source tokens times beams that are searched at once. precision: fp32, or bf16 to compute the
    matrix products in bfloat16 (autocast).

    ValueError for options out of range; DataError for text that the tokenizer cannot encode.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}; 8192 suits most machines")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    device = next(p.device for p in model.parameters())
    sources = [[*tokens, tokenizer.eos] for tokens in tokenizer.encode_batch(sentences)]
    order = [i for i in sorted(range(len(sources)), key=lambda i: len(sources[i])) if sentences[i].strip()]
    translations = [""] * len(sentences)
    for rows in _batches(
        order, [len(source) for source in sources], max(1, batch_tokens // max(1, beam_size))
    ):
        source, source_mask = _pad([sources[i] for i in rows], tokenizer.pad, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            targets = beam_search(
                model,
                source,
                source_mask,
                bos=tokenizer.bos,
                eos=tokenizer.eos,
                pad=tokenizer.pad,
                beam_size=beam_size,
                length_penalty=length_penalty,
                max_extra_tokens=max_extra_tokens,
            )
        for i, target in zip(rows, targets.tolist(), strict=True):
            translations[i] = tokenizer.decode(target[: target.index(tokenizer.eos)])
    return translations


def _batches(order: list[int], lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Cut `order`, in which lengths grow, into runs of at most `batch_tokens` padded tokens, none empty."""
    first = 0
    for last in range(1, len(order) + 1):
        if last == len(order) or (last - first + 1) * lengths[order[last]] > batch_tokens:
            yield order[first:last]
            first = last


def _pad(sources: list[list[int]], pad: int, device: Any) -> tuple[Int[Tensor, "b s"], Bool[Tensor, "b s"]]:
    """Return the sources as one rectangle, padded on the right, and where it is real."""
    width = max(map(len, sources))
    lengths = torch.tensor([len(source) for source in sources])
    tokens = torch.tensor([source + [pad] * (width - len(source)) for source in sources])
    return tokens.to(device), (torch.arange(width) < lengths[:, None]).to(device)
