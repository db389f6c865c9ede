"""Masked language modelling: an encoder, running text, hidden tokens from those on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ...analysis.cost import Shape
from ...data import DataError, MaskedBatch, MaskedEvaluation, MaskedStream, TextCorpus, TextData
from ...evaluation import Report, evaluate_masked, report_masked
from ...generation import evaluating
from ...models import EncoderOnly, EncoderOnlyConfig, ModelConfig, NoPoolerConfig
from ...training.objective import MASK, Masked
from .task import Task, Work

MaskedWork = Work[EncoderOnly, TextCorpus, Masked]
FRAME = 2  # bos and eos around each window
SHOWN = 48  # tokens of a sample


class MaskedModelling(Task[EncoderOnly, TextCorpus, Masked]):
    """An encoder learns to tell hidden tokens. Its pooler, which nothing would train, is left out."""

    data, objective, model = TextData, Masked, EncoderOnly
    needs = "an encoder-only model reads running text with tokens hidden"
    special_tokens = (MASK,)

    def architecture(self, family: ModelConfig, corpus: TextCorpus) -> ModelConfig:
        assert isinstance(family, EncoderOnlyConfig)
        return replace(family, pooler=NoPoolerConfig())

    def longest(self, corpus: TextCorpus) -> int:
        return corpus.config.context

    def stream(self, corpus: TextCorpus, objective: Masked, seed: int) -> MaskedStream:
        tokenizer = corpus.tokenizer
        if corpus.config.context <= FRAME:
            raise DataError(
                f"context {corpus.config.context} leaves no room for a token between bos and eos; "
                f"set data.context: {FRAME + 1} or more"
            )
        windows, frame = corpus.stream(seed, margin=FRAME), (tokenizer.bos, tokenizer.eos)
        return MaskedStream(windows, objective.masking(tokenizer), seed=seed, frame=frame)

    def largest(self, work: MaskedWork, accumulate: int) -> Shape:
        rows, width = self.stream(work.corpus, work.objective, 0).batch(0, 0, accumulate).tokens.shape
        return Shape(rows, width)

    def validate(self, work: MaskedWork) -> dict[str, float]:
        """The loss of hidden tokens, in nats, and how many are guessed."""
        found = evaluate_masked(work.model, _evaluation(work, "validation").batches())
        return {
            "val/loss": found.nats_per_token,
            "val/perplexity": found.perplexity,
            "val/accuracy": found.accuracy,
        }

    def sample(self, work: MaskedWork) -> str:
        """The beginning of the validation text, hidden tokens in brackets with the model's guesses."""
        tokenizer, device = work.corpus.tokenizer, next(work.model.parameters()).device
        (batch,) = islice(_evaluation(work, "validation").batches(), 1)
        first = MaskedBatch(*(part[:1].to(device) for part in vars(batch).values()))
        with evaluating(work.model):
            logits = work.model(first.tokens, attention_mask=first.real)
        guesses, shown = logits[0].argmax(-1), []
        for place in range(min(SHOWN, first.tokens.shape[1])):
            text = tokenizer.decode([int(first.labels[0, place])])
            guess = tokenizer.decode([int(guesses[place])])
            shown.append(f"[{text}→{guess}]" if bool(first.chosen[0, place]) else text)
        return "".join(shown).strip()

    def report(self, work: MaskedWork, split: str) -> Report:
        return report_masked(work.model, _evaluation(work, split).batches(), split)

    def next_command(self, work: MaskedWork, folder: Path) -> Sequence[str]:
        return ("transformer", "evaluate", str(folder), "--split", "validation")


def _evaluation(work: MaskedWork, split: str) -> MaskedEvaluation:
    tokenizer = work.corpus.tokenizer
    windows, frame = work.corpus.evaluation(split, margin=FRAME), (tokenizer.bos, tokenizer.eos)
    return MaskedEvaluation(windows, work.objective.masking(tokenizer), frame=frame)
