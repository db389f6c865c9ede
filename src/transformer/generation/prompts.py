"""Prompts of unlike lengths: what can be continued, and where each ends."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def at_last_real(logits: Float[Tensor, "b t v"], mask: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b v"]:
    """Return the logits after the last real token of each row."""
    if mask is None:
        return logits[:, -1]
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
    return logits[torch.arange(len(logits), device=logits.device), last]


def as_tokens(stop: int | Collection[int] | None, device: torch.device) -> Int[Tensor, " _"]:
    """Return the tokens that end a text, of which there may be none, one or several."""
    stops = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    return torch.tensor(stops, dtype=torch.long, device=device)


def check_prompts(tokens: Tensor, max_new_tokens: int, mask: Tensor | None, max_seq_len: int | None) -> None:
    """Refuse what cannot be continued."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, got {max_new_tokens}")
    given = tokens.shape[1]
    if max_seq_len is not None and max_new_tokens > max(0, max_seq_len - given):
        raise ValueError(
            f"{given} tokens and {max_new_tokens} new ones are more than max_seq_len {max_seq_len}; "
            f"ask for at most {max(0, max_seq_len - given)} or shorten the prompt"
        )
    real = tokens.new_full((len(tokens),), given) if mask is None else mask.sum(1)
    if (real == 0).any():
        row = int((real == 0).nonzero()[0])
        raise ValueError(f"prompt {row} has no token to continue; begin it with the start token")


def seen_tokens(
    tokens: Int[Tensor, "b t"], mask: Bool[Tensor, "b t"] | None, logits: Float[Tensor, "b v"]
) -> Bool[Tensor, "b v"]:
    """Return which tokens of the vocabulary each row has; padding is none."""
    real = torch.ones_like(tokens).bool() if mask is None else mask
    counts = torch.zeros_like(logits, dtype=torch.long)
    return counts.scatter_add(1, tokens.clamp(max=logits.shape[1] - 1), real.long()) > 0
