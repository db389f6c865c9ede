"""Beam search: the most probable continuation that a search of bounded width finds.

The paper's form (arXiv 1706.03762 §6.1, which takes it from arXiv 1609.08144 §7) is the default:

    score(Y) = log P(Y | X) / lp(Y),   lp(Y) = ((5 + |Y|) / 6)^α        `gnmt`
                                       lp(Y) = |Y|^α                    `power`, that of the library transformers

|Y| counts the token that ends Y. Each step extends the `beam_size` best unfinished targets by every token. Among the
`beam_size` best extensions those that end are finished; the best of the others go on. One search serves
encoder-decoders and decoder-only models; what they give it is a state and the logits of the next token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, TypeVar

import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .prompts import as_tokens, at_last_real, check_prompts
from .protocol import Decoder, EncoderDecoder, State, evaluating

M = TypeVar("M")
S = TypeVar("S", bound=State)

PENALTIES: Mapping[str, Callable[[Tensor | int, float], Tensor | float]] = MappingProxyType(
    {"gnmt": lambda length, alpha: ((5 + length) / 6) ** alpha, "power": lambda length, alpha: length**alpha}
)
"""lp(Y) as a function of |Y| and α."""
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"normalization": tuple(PENALTIES), "stopping": ("full", "worse", "never"), "at_limit": ("end", "cut")}
)
"""The values of the options that are names."""


@dataclass(frozen=True)
class BeamOptions:
    """How to search.

    beam_size: targets that are kept at each step; 1 is greedy decoding. length_penalty: α; 0 leaves scores alone, more
    favours longer targets. normalization: the form of lp. stopping: when a source is done. "full": when `beam_size`
    targets are finished, or none that goes on could still beat the best. "worse": when `beam_size` targets are finished
    and the best of those that go on, at its present length, is no better than the worst of them, which is how
    transformers stops unless told otherwise. "never": only when none that goes on could still beat the best. at_limit:
    a target that has as many tokens as it may have is made to end there ("end"), or taken as it is ("cut").
    """

    beam_size: Annotated[int, Ge(1)] = 4
    length_penalty: Annotated[float, Ge(0)] = 0.6
    normalization: str = "gnmt"
    stopping: str = "full"
    at_limit: str = "end"

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size must be at least 1 (greedy decoding), got {self.beam_size}")
        if not 0 <= self.length_penalty < float("inf"):
            raise ValueError(
                f"length_penalty must be 0 (none) or more, got {self.length_penalty}; the paper has 0.6"
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")


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
    normalization: str = "gnmt",
    stopping: str = "full",
    at_limit: str = "end",
) -> Int[Tensor, "b t"]:
    """Return for each source the target Y found with the highest score, `eos` included, padded on the right.

    The options are those of `BeamOptions`. No target has more tokens than its source (as `source_mask` counts them)
    plus `max_extra_tokens`, nor more than the model can number. Sources that are done leave the batch; a result does
    not depend on what else is in it.

    ValueError for options out of range or logits that are not finite.
    """
    options = BeamOptions(beam_size, length_penalty, normalization, stopping, at_limit)
    if max_extra_tokens < 0:
        raise ValueError(f"max_extra_tokens must be 0 or more, got {max_extra_tokens}; the paper has 50")
    counts = source.new_full((len(source),), source.shape[1]) if source_mask is None else source_mask.sum(1)
    limits = (counts + max_extra_tokens).clamp(min=1, max=model.decoder.position.max_seq_len)
    with evaluating(model):
        state = model.initial_state(model.encode(source, source_mask))
        search = Search(limits, source.new_tensor([eos]), pad, options)
        logits = model.decode(source.new_full((len(source), 1), bos), state)[:, -1]
        return _run(model.decode, state, logits, search)


def beam_generate(
    model: Decoder[S],
    tokens: Int[Tensor, "b t"],
    max_new_tokens: int,
    *,
    stop: int | Collection[int] | None = None,
    pad: int = 0,
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    normalization: str = "gnmt",
    stopping: str = "full",
    at_limit: str = "cut",
) -> Int[Tensor, "b _"]:
    """Return `tokens` followed by the continuation found with the highest score, up to `max_new_tokens` long.

    stop: a token that ends a continuation and belongs to it, or several; `pad` fills the row after it.
    attention_mask: True (or 1) at real tokens; prompts may be padded on either side. The other options are those of
    `BeamOptions`; |Y| counts the new tokens. Where `at_limit` is "end" the first of `stop` ends a continuation.

    ValueError for options out of range, an empty prompt, more tokens than the model can number, or logits that
    are not finite.
    """
    options = BeamOptions(beam_size, length_penalty, normalization, stopping, at_limit)
    mask = None if attention_mask is None else attention_mask.bool()
    check_prompts(tokens, max_new_tokens, mask, model.stack.position.max_seq_len)
    stops = as_tokens(stop, tokens.device)
    if at_limit == "end" and not len(stops):
        raise ValueError('at_limit "end" needs a token to end with; give stop, or at_limit="cut"')
    if not max_new_tokens:
        return tokens.clone()
    limits = tokens.new_full((len(tokens),), max_new_tokens)
    with evaluating(model):
        state = model.initial_state()
        logits = at_last_real(model.decode(tokens, state, mask), mask)
        best = _run(model.decode, state, logits, Search(limits, stops, pad, options))
    return torch.cat([tokens, best], dim=1)


def _run(
    decode: Callable[[Tensor, S], Tensor], state: S, logits: Float[Tensor, "b v"], search: Search
) -> Int[Tensor, "b _"]:
    """Search from the logits of the first tokens on; return the best targets."""
    while len(search.scores):
        rows = search.extend(logits)
        if not len(rows):
            break
        if not torch.equal(rows, torch.arange(len(logits), device=rows.device)):
            state.select(rows)
        logits = decode(search.last, state)[:, -1]
    return search.best[:, : max(search.n_tokens, 1)].clone()


class Search:
    """The beams of all sources at once.

    At a given step every source has as many beams: 1 at first, then as many as there are, up to `beam_size`.
    source: `[b]`, which sources are still searched; tokens: `[b beam t]`, their unfinished targets; scores: `[b beam]`,
    log P of these, best first; finished: `[b beam]`, the best scores of each source's finished targets, best first.
    """

    def __init__(
        self, limits: Int[Tensor, " b"], stops: Int[Tensor, " _"], pad: int, options: BeamOptions
    ) -> None:
        self.stops, self.options = stops, options
        self.limits, self.n_tokens = limits, 0
        n_sources, device = len(limits), limits.device
        self.source = torch.arange(n_sources, device=device)
        self.tokens = torch.zeros(n_sources, 1, 0, dtype=torch.long, device=device)
        self.scores = torch.zeros(n_sources, 1, dtype=torch.float64, device=device)
        width = int(limits.max()) if n_sources else 0
        self.best = torch.full((n_sources, width), pad, device=device)
        beams = (n_sources, options.beam_size)
        self.finished = torch.full(beams, -torch.inf, dtype=torch.float64, device=device)
        self.n_finished = torch.zeros(n_sources, dtype=torch.long, device=device)

    @property
    def last(self) -> Int[Tensor, "_ 1"]:
        """The last token of every beam: what the model is to read next."""
        return self.tokens[:, :, -1].reshape(-1, 1)

    def extend(self, logits: Float[Tensor, "_ v"]) -> Int[Tensor, " _"]:
        """Make every beam one token longer; return which rows of the model's state the new beams continue."""
        self.n_tokens += 1
        scores, beam, token = self._candidates(logits)
        at_limit = self.limits[self.source] == self.n_tokens
        ends = torch.isin(token, self.stops) | at_limit[:, None]
        among_best = torch.arange(scores.shape[1], device=scores.device) < self.options.beam_size
        self._finish(scores, beam, token, ends & among_best & (scores > -torch.inf))
        n_beams = min(
            self.options.beam_size, max(1, scores.shape[1] - len(self.stops) * self.tokens.shape[1])
        )
        kept = ends.long().argsort(dim=1, stable=True)[:, :n_beams]  # the best that do not end, in order
        scores, beam, token = (x.gather(1, kept) for x in (scores.masked_fill(ends, -torch.inf), beam, token))
        going = self._undone(scores[:, 0]).nonzero()[:, 0]
        scores, beam, token = scores[going], beam[going], token[going]
        rows = going[:, None] * self.tokens.shape[1] + beam
        self.tokens = torch.cat([self.tokens[going[:, None], beam], token[:, :, None]], dim=2)
        self.scores, self.source = scores, self.source[going]
        return rows.flatten()

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores, beams and tokens of the best extensions of each source, `[b candidates]`.

        One more than there are ways to end, times `beam_size`: so many that `beam_size` are left to go on. None
        can come from further down than that in its own beam, so each beam's best are chosen first.
        """
        n_beams, vocab_size = self.scores.shape[1], logits.shape[1]
        n_wanted = (1 + max(1, len(self.stops))) * self.options.beam_size
        n_best = min(n_wanted, vocab_size)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        normalizer = logits.logsumexp(1, keepdim=True)
        if self.options.at_limit == "end":
            at_limit = (self.limits[self.source] == self.n_tokens).repeat_interleave(n_beams)
            other = torch.arange(vocab_size, device=logits.device) != self.stops[0]
            logits = logits.masked_fill(at_limit[:, None] & other, -torch.inf)
        best, token = logits.topk(n_best, dim=1)
        scores = self.scores.view(-1, 1) + (best - normalizer)
        if scores.isnan().any():
            raise ValueError("the model's logits are not finite: no target is best; check its weights")
        scores, token = (rearrange(x, "(b k) c -> b (k c)", k=n_beams) for x in (scores, token))
        scores, index = scores.topk(min(n_wanted, n_beams * n_best), dim=1)
        return scores, index // n_best, token.gather(1, index)

    def _finish(self, scores: Tensor, beam: Tensor, token: Tensor, ends: Bool[Tensor, "b _"]) -> None:
        """Count the targets that end here, and note each source's best so far."""
        rows = self.source
        self.n_finished[rows] += ends.sum(1)
        score = scores.masked_fill(~ends, -torch.inf) / self._penalty(self.n_tokens)
        top, index = score.max(1)
        better = (top > self.finished[rows, 0]).nonzero()[:, 0]
        chosen, place = index[better], rows[better]
        self.best[place, : self.n_tokens - 1] = self.tokens[better, beam[better, chosen]]
        self.best[place, self.n_tokens - 1] = token[better, chosen]
        merged = torch.cat([self.finished[rows], score], dim=1)
        self.finished[rows] = merged.topk(self.options.beam_size, dim=1).values

    def _undone(self, scores: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whether to go on with each source, `scores` being the best of its unfinished targets.

        log P only falls as a target grows, and lp only rises: at best all further tokens are certain.
        """
        limits, finished = self.limits[self.source], self.finished[self.source]
        full = self.n_finished[self.source] >= self.options.beam_size
        more = (limits > self.n_tokens) & (scores > -torch.inf)
        if self.options.stopping == "worse":
            return more & ~(full & (scores / self._penalty(self.n_tokens) <= finished[:, -1]))
        could = more & (scores / self._penalty(limits) > finished[:, 0])
        return could if self.options.stopping == "never" else could & ~full

    def _penalty(self, length: int | Tensor) -> float | Tensor:
        """lp of a target of `length` tokens."""
        return PENALTIES[self.options.normalization](length, self.options.length_penalty)
