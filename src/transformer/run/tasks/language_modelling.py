"""Language modelling: a decoder-only model, running text, each token from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...analysis.cost import Shape
from ...data import TextCorpus, TextData, TextStream
from ...evaluation import Report, evaluate_text, report_text
from ...generation import Sampling, continue_text
from ...models import DecoderOnly
from ...training.objective import Causal
from .task import Task, Work

LanguageWork = Work[DecoderOnly, TextCorpus, Causal]


class LanguageModelling(Task[DecoderOnly, TextCorpus, Causal]):
    """A decoder-only model learns to go on with a text."""

    data, objective, model = TextData, Causal, DecoderOnly
    needs = "a decoder-only model running text"

    def longest(self, corpus: TextCorpus) -> int:
        return corpus.config.context

    def stream(self, corpus: TextCorpus, objective: Causal, seed: int) -> TextStream:
        return corpus.stream(seed)

    def largest(self, work: LanguageWork, accumulate: int) -> Shape:
        rows, width = work.corpus.stream(0).batch(0, 0, accumulate).tokens.shape
        return Shape(rows, width - 1)

    def validate(self, work: LanguageWork) -> dict[str, float]:
        """The loss, in nats per token, and what follows from it."""
        text = evaluate_text(work.model, work.corpus.evaluation("validation"))
        return {
            "val/loss": text.nats_per_token,
            "val/perplexity": text.perplexity,
            "val/bpb": text.bits_per_byte,
        }

    def sample(self, work: LanguageWork) -> str:
        """A continued prompt."""
        options, sampling = work.options, Sampling(seed=work.seed)
        return continue_text(
            work.model, work.corpus.tokenizer, options.prompt, options.sample_tokens, sampling
        )

    def report(self, work: LanguageWork, split: str) -> Report:
        return report_text(work.model, work.corpus, split)

    def next_command(self, work: LanguageWork, folder: Path) -> Sequence[str]:
        return ("transformer", "generate", str(folder), work.options.prompt.strip() or "O")
