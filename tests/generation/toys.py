"""Small models for the tests of this folder, and the definitions that they are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from transformer.utils.rng import derive_seed

BOS, EOS, PAD = 1, 2, 0
Prefix = tuple[int, ...]


class PrefixState:
    """Remembers everything: the sources, and every token of every row."""

    def __init__(self, sources: list[Prefix]) -> None:
        self.sources, self.prefixes = sources, [() for _ in sources]
        self.most_rows = 0

    def push(self, tokens: Tensor) -> None:
        rows = tokens.tolist()
        self.prefixes = [prefix + tuple(row) for prefix, row in zip(self.prefixes, rows, strict=True)]
        self.most_rows = max(self.most_rows, len(rows))

    def select(self, rows: Tensor) -> None:
        self.sources = [self.sources[i] for i in rows.tolist()]
        self.prefixes = [self.prefixes[i] for i in rows.tolist()]


class FunctionModel(nn.Module):
    """An encoder-decoder whose logits are any function of (source, target so far, from `bos` on)."""

    def __init__(
        self, logits: Callable[[Prefix, Prefix], list[float]], max_seq_len: int | None = None
    ) -> None:
        super().__init__()
        self.logits = logits
        self.nothing = nn.Parameter(torch.zeros(()))
        self.decoder = SimpleNamespace(position=SimpleNamespace(max_seq_len=max_seq_len))
        self.calls: list[tuple[int, bool, bool]] = []  # rows, autocast, training
        self.widths: list[tuple[int, int]] = []

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> list[Prefix]:
        real = torch.ones_like(source).bool() if source_mask is None else source_mask.bool()
        self.widths.append((source.shape[0], source.shape[1]))
        return [tuple(row[keep].tolist()) for row, keep in zip(source, real, strict=True)]

    def initial_state(self, memory: list[Prefix]) -> PrefixState:
        return PrefixState(memory)

    def decode(self, target: Tensor, state: PrefixState) -> Tensor:
        state.push(target)
        self.calls.append((len(target), torch.is_autocast_enabled("cpu"), self.training))
        rows = [self.logits(*row) for row in zip(state.sources, state.prefixes, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)[:, None].expand(-1, target.shape[1], -1)


def random_tree(vocab_size: int, seed: int, spread: float = 1.5) -> Callable[[Prefix, Prefix], list[float]]:
    """Logits without any structure: normal numbers, other ones after every prefix."""

    def logits(source: Prefix, prefix: Prefix) -> list[float]:
        generator = torch.Generator().manual_seed(derive_seed(seed, str(source), str(prefix)))
        return (spread * torch.randn(vocab_size, generator=generator, dtype=torch.float64)).tolist()

    return logits


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    normalizer = top + math.log(math.fsum(math.exp(z - top) for z in logits))
    return [z - normalizer for z in logits]


def score(log_probability: float, length: int, alpha: float) -> float:
    """log P / lp, arXiv 1609.08144 equation 14."""
    return log_probability / (math.pow(5 + length, alpha) / math.pow(5 + 1, alpha))


def slow_beam_search(
    next_logits: Callable[[list[Prefix]], list[list[float]]], beam_size: int, alpha: float, limit: int
) -> Prefix:
    """Beam search for one source, as its description reads; `next_logits` knows no state."""
    live: list[tuple[float, Prefix]] = [(0.0, ())]
    finished: list[tuple[float, Prefix]] = []
    for length in range(1, limit + 1):
        extensions = [
            (total + gain, (*target, token))
            for (total, target), logits in zip(live, next_logits([(BOS, *y) for _, y in live]), strict=True)
            for token, gain in enumerate(log_softmax(logits))
            if length < limit or token == EOS
        ]
        extensions.sort(key=lambda extension: -extension[0])
        ending = [(s, y) for s, y in extensions[:beam_size] if y[-1] == EOS]
        finished += [(score(s, length, alpha), y) for s, y in ending]
        live = [(s, y) for s, y in extensions if y[-1] != EOS][:beam_size]
        if len(finished) >= beam_size or not live:
            break
        if finished and score(live[0][0], limit, alpha) <= max(finished)[0]:
            break
    return max(finished)[1]


class FunctionDecoder(nn.Module):
    """A decoder-only model whose logits are any function of the real tokens so far."""

    def __init__(self, logits: Callable[[Prefix], list[float]], max_seq_len: int | None = None) -> None:
        super().__init__()
        self.logits = logits
        self.nothing = nn.Parameter(torch.zeros(()))
        self.stack = SimpleNamespace(position=SimpleNamespace(max_seq_len=max_seq_len))
        self.calls: list[tuple[int, int]] = []

    def initial_state(self, storage: object = None) -> PrefixState:
        return PrefixState([])

    def decode(self, tokens: Tensor, state: PrefixState, attention_mask: Tensor | None = None) -> Tensor:
        self.calls.append((tokens.shape[0], tokens.shape[1]))
        if not state.prefixes:
            state.sources, state.prefixes = [()] * len(tokens), [()] * len(tokens)
        real = torch.ones_like(tokens) if attention_mask is None else attention_mask.long()
        out = []
        for row, keep, prefix in zip(tokens.tolist(), real.tolist(), state.prefixes, strict=True):
            seen, logits = prefix, []
            for token, is_real in zip(row, keep, strict=True):
                seen = (*seen, token) if is_real else seen
                logits.append(self.logits(seen))
            out.append((seen, logits))
        state.prefixes = [seen for seen, _ in out]
        return torch.tensor([logits for _, logits in out], dtype=torch.float64)
