"""A language model of ours as a model of lm-evaluation-harness, whose tasks then run on it.

    from lm_eval import simple_evaluate
    simple_evaluate(HarnessModel(load(PATH), load_tokenizer_of(PATH)), tasks=["lambada_openai"])

Written against version 0.4.13 of the package `lm_eval`, which is an extra (`harness`) and brings some seventy others.
Continuations are scored by `scoring.score`, so that figures are those of our own tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data import Tokenizer
from ..generation import Sampling, Writing, show, write_tokens
from ..models import DecoderOnly
from .scoring import BATCH_TOKENS, longest, score, score_rows, start_of_text, windows

try:
    from lm_eval.api.model import LM
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the adapter for lm-evaluation-harness needs the package lm_eval; install it with: "
        "pip install 'transformer-from-scratch[harness]'",
        name=error.name,
    ) from None

WIDTH, NEW = 2048, 256
"""Tokens read at once by a model that can read any number; tokens written where a task does not say how many."""
SAMPLED = {"temperature", "top_k", "top_p", "min_p", "seed"}


class HarnessModel(LM):  # type: ignore[misc]
    """Answers the three kinds of requests of the harness; `batch_tokens` bounds a batch, padding included."""

    def __init__(self, model: DecoderOnly, tokenizer: Tokenizer, *, batch_tokens: int = BATCH_TOKENS) -> None:
        super().__init__()
        self.model, self.words, self.batch_tokens = model, tokenizer, batch_tokens

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is what greedy decoding writes."""
        pairs = [(str(context), str(continuation)) for context, continuation in _arguments(requests)]
        scores = score(self.model, self.words, pairs, batch_tokens=self.batch_tokens)
        return [(one.log_likelihood, one.greedy) for one in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, every token from as many before it as the model can read."""
        first, found = start_of_text(self.words), []
        width = longest(self.model) or WIDTH
        for (text,) in _arguments(requests):
            rows = windows(self.words.encode(text), first, width)
            scores = score_rows(self.model, rows, batch_tokens=self.batch_tokens)
            found.append(sum(one.log_likelihood for one in scores))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each context, up to a stop string or the end of the text; greedy unless asked."""
        return [self._write(str(context), dict(options)) for context, options in _arguments(requests)]

    def _write(self, context: str, options: dict[str, Any]) -> str:
        until = options.pop("until", None) or ()
        stop_strings = (until,) if isinstance(until, str) else tuple(until)
        length = int(options.pop("max_gen_toks", NEW))
        writing = Writing(length, _sampling(options), stop_strings)
        ids, limit = self.words.prompt(context), longest(self.model)
        if limit is not None:  # the beginning of a context that is too long is cut off
            ids = ids[-max(1, limit - length) :]
        new = write_tokens(self.model, ids, self.words.stops, writing)
        return "".join(show(new, self.words, self.words.stops, writing.stop_strings))


def _sampling(options: Mapping[str, Any]) -> Sampling:
    """How to choose tokens: greedily, unless `do_sample` or a temperature says otherwise."""
    settings = {name: value for name, value in options.items() if name != "do_sample"}
    if unknown := sorted(settings.keys() - SAMPLED):
        raise ValueError(
            f"the task asks for {unknown[0]}, which is not known; known are {', '.join(sorted(SAMPLED))}"
        )
    if not options.get("do_sample", settings.get("temperature", 0) > 0):
        return Sampling(0.0)
    return Sampling(**{"temperature": 1.0, **settings})


def _arguments(requests: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]
