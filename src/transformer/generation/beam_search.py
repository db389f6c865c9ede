"""Beam search with the length penalty of arXiv 1706.03762 §6.1, which is that of arXiv 1609.08144 §7."""

from __future__ import annotations

from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .protocol import EncoderDecoder, State, evaluating

M = TypeVar("M")
S = TypeVar("S", bound=State)


def beam_search(
    model: EncoderDecoder[M, S],
    source: Int[Tensor, "b s"],
    source_mask: Bool[Tensor, "b s"] | Int[Tensor, "b s"] | None = None,
    *,
    bos: int,
    eos: int,
    pad: int,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    max_extra_tokens: int = 50,
) -> Int[Tensor, "b t"]:
    """Return for each source the target Y found with the highest score, `eos` included, padded on the right.

        score(Y) = log P(Y | X) / lp(Y),   lp(Y) = ((5 + |Y|) / 6)^length_penalty

    |Y| counts `eos`. Each step extends the `beam_size` best unfinished targets by every token. Among the
    `beam_size` best extensions those that end in `eos` are finished; the best of the others go on. A source
    is done when `beam_size` targets are finished, or when none that goes on could still get a better score
    than the best finished. No target has more tokens than its source (as `source_mask` counts them) plus
    `max_extra_tokens`, nor more than the model can number: the last one allowed is `eos`. `beam_size` 1 is
    greedy decoding. Sources that are done leave the batch; a result does not depend on what else is in it.

    ValueError for options out of range or logits that are not finite.
    """
    _check(beam_size, length_penalty, max_extra_tokens)
    counts = source.new_full((len(source),), source.shape[1]) if source_mask is None else source_mask.sum(1)
    limits = (counts + max_extra_tokens).clamp(min=1, max=model.decoder.position.max_seq_len)
    with evaluating(model):
        state = model.initial_state(model.encode(source, source_mask))
        search = Search(limits, bos, eos, pad, beam_size, length_penalty)
        while len(search.scores):
            logits = model.decode(search.last, state)[:, -1]
            rows = search.extend(logits)
            if not torch.equal(rows, torch.arange(len(logits), device=rows.device)):
                state.select(rows)
    return search.best[:, : max(search.n_tokens, 1)].clone()


class Search:
    """The beams of all sources at once.

    At a given step every source has as many beams: 1 at first, then as many as there are, up to `beam_size`.
    source: `[b]`, which sources are still searched; tokens: `[b beam t]`, their unfinished targets from
    `bos` on; scores: `[b beam]`, log P of these, best first.
    """

    def __init__(
        self, limits: Int[Tensor, " b"], bos: int, eos: int, pad: int, beam_size: int, length_penalty: float
    ) -> None:
        self.eos, self.beam_size, self.length_penalty = eos, beam_size, length_penalty
        self.limits, self.n_tokens = limits, 0
        n_sources, device = len(limits), limits.device
        self.source = torch.arange(n_sources, device=device)
        self.tokens = torch.full((n_sources, 1, 1), bos, device=device)
        self.scores = torch.zeros(n_sources, 1, dtype=torch.float64, device=device)
        width = int(limits.max()) if n_sources else 0
        self.best = torch.full((n_sources, width), pad, device=device)
        self.best_scores = torch.full((n_sources,), -torch.inf, dtype=torch.float64, device=device)
        self.n_finished = torch.zeros(n_sources, dtype=torch.long, device=device)

    @property
    def last(self) -> Int[Tensor, "_ 1"]:
        """The last token of every beam: what the model is to read next."""
        return self.tokens[:, :, -1].reshape(-1, 1)

    def extend(self, logits: Float[Tensor, "_ v"]) -> Int[Tensor, " _"]:
        """Make every beam one token longer; return which rows of the model's state the new beams continue."""
        self.n_tokens += 1
        scores, beam, token = self._candidates(logits)
        ends = token == self.eos
        among_best = torch.arange(scores.shape[1], device=scores.device) < self.beam_size
        self._finish(scores, beam, ends & among_best)
        n_beams = min(self.beam_size, scores.shape[1] - self.tokens.shape[1])  # a beam ends in one way only
        kept = ends.long().argsort(dim=1, stable=True)[:, :n_beams]  # the best that do not end, in order
        scores, beam, token = (x.gather(1, kept) for x in (scores, beam, token))
        going = self._undone(scores[:, 0]).nonzero()[:, 0]
        scores, beam, token = scores[going], beam[going], token[going]
        rows = going[:, None] * self.tokens.shape[1] + beam
        self.tokens = torch.cat([self.tokens[going[:, None], beam], token[:, :, None]], dim=2)
        self.scores, self.source = scores, self.source[going]
        return rows.flatten()

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores, beams and tokens of the best extensions of each source, `[b candidates]`.

        Twice `beam_size` of them: at most `beam_size` end in `eos`, so that as many are left to go on. None
        can come from further down than that in its own beam, so each beam's best are chosen first.
        """
        n_beams, vocab_size = self.scores.shape[1], logits.shape[1]
        n_best = min(2 * self.beam_size, vocab_size)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        normalizer = logits.logsumexp(1, keepdim=True)
        at_limit = (self.limits[self.source] == self.n_tokens).repeat_interleave(n_beams)
        if at_limit.any():
            other = torch.arange(vocab_size, device=logits.device) != self.eos
            logits = logits.masked_fill(at_limit[:, None] & other, -torch.inf)
        best, token = logits.topk(n_best, dim=1)
        scores = self.scores.view(-1, 1) + (best - normalizer)
        if scores.isnan().any():
            raise ValueError("the model's logits are not finite: no target is best; check its weights")
        scores, token = (rearrange(x, "(b k) c -> b (k c)", k=n_beams) for x in (scores, token))
        scores, index = scores.topk(min(2 * self.beam_size, n_beams * n_best), dim=1)
        return scores, index // n_best, token.gather(1, index)

    def _finish(self, scores: Tensor, beam: Tensor, finished: Bool[Tensor, "b _"]) -> None:
        """Count the targets that end here, and note each source's best so far."""
        self.n_finished[self.source] += finished.sum(1)
        score, index = scores.masked_fill(~finished, -torch.inf).max(1)
        score = score / self._penalty(self.n_tokens)
        better = (score > self.best_scores[self.source]).nonzero()[:, 0]
        rows = self.source[better]
        chosen = beam[better, index[better]]
        self.best_scores[rows] = score[better]
        self.best[rows, : self.n_tokens - 1] = self.tokens[better, chosen, 1:]
        self.best[rows, self.n_tokens - 1] = self.eos

    def _undone(self, scores: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whether a target that goes on, `scores` being the best of them, could still be the best of all.

        log P only falls as a target grows, and lp only rises: at best all further tokens are certain.
        """
        limits, best = self.limits[self.source], self.best_scores[self.source]
        could = scores / self._penalty(limits) > best
        return could & (self.n_finished[self.source] < self.beam_size) & (limits > self.n_tokens)

    def _penalty(self, length: int | Tensor) -> float | Tensor:
        """lp of a target of `length` tokens."""
        return ((5 + length) / 6) ** self.length_penalty


def _check(beam_size: int, length_penalty: float, max_extra_tokens: int) -> None:
    """Refuse options out of range."""
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1 (greedy decoding), got {beam_size}")
    if not 0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty must be 0 (none) or more, got {length_penalty}; the paper has 0.6")
    if max_extra_tokens < 0:
        raise ValueError(f"max_extra_tokens must be 0 or more, got {max_extra_tokens}; the paper has 50")
