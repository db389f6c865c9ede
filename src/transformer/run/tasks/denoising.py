"""Denoising: an encoder-decoder, running text, the spans that were cut out of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ...analysis.cost import Shape
from ...base.transformer import EncoderDecoder
from ...data import TextCorpus, TextData
from ...data.span_corruption import SENTINELS, SpanEvaluation, SpanStream, spans_of
from ...evaluation import Report, evaluate_pairs
from ...generation import beam_search
from ...training.denoising import SpanDenoising
from .task import Task, Work

DenoisingWork = Work[EncoderDecoder, TextCorpus, SpanDenoising]
SHOWN = 60  # tokens of a sample's source


class Denoising(Task[EncoderDecoder, TextCorpus, SpanDenoising]):
    """An encoder-decoder learns to write what was cut out of a text."""

    data, objective, model = TextData, SpanDenoising, EncoderDecoder
    needs = "an encoder-decoder reads running text with spans cut out"
    special_tokens = SENTINELS

    def longest(self, corpus: TextCorpus) -> int:
        return (
            corpus.config.context + 3
        )  # hidden tokens and sentinels are at most one more, whatever the share

    def stream(self, corpus: TextCorpus, objective: SpanDenoising, seed: int) -> SpanStream:
        stream = SpanStream(corpus.stream(seed), objective.corruption(corpus.tokenizer), seed=seed)
        stream.batch(0)  # refuses a context with more spans than there are sentinels
        return stream

    def largest(self, work: DenoisingWork, accumulate: int) -> Shape:
        batch = self.stream(work.corpus, work.objective, 0).batch(0, 0, accumulate)
        return Shape(len(batch.source), batch.target.shape[1] - 1, batch.source.shape[1])

    def validate(self, work: DenoisingWork) -> dict[str, float]:
        """The loss of the targets, in nats per token, and what follows from it."""
        found = evaluate_pairs(work.model, _evaluation(work, "validation"))
        return {"val/loss": found.nats_per_token, "val/perplexity": found.perplexity}

    def sample(self, work: DenoisingWork) -> str:
        """The beginning of the validation text: in brackets what was cut out, and what the model writes there."""
        tokenizer, device = work.corpus.tokenizer, next(work.model.parameters()).device
        corruption = work.objective.corruption(tokenizer)
        (batch,) = islice(_evaluation(work, "validation").batches(), 1)
        source = batch.source[:1].to(device)
        start, eos, pad = corruption.start, tokenizer.eos, tokenizer.pad
        found = beam_search(work.model, source, bos=start, eos=eos, pad=pad, beam_size=1, max_extra_tokens=0)
        sentinels, shown = corruption.sentinels, []
        meant = spans_of(batch.target[0].tolist(), sentinels, eos)
        guessed = spans_of(found[0].tolist(), sentinels, eos)
        for token in source[0, :SHOWN].tolist():
            text = tokenizer.decode([token])
            if token in sentinels:
                pair = (tokenizer.decode(spans.get(token, [])) for spans in (meant, guessed))
                text = "[" + "→".join(pair) + "]"
            shown.append(text)
        return "".join(shown).strip()

    def report(self, work: DenoisingWork, split: str) -> Report:
        found = evaluate_pairs(work.model, _evaluation(work, split))
        figures = {f"{split}/nll": found.nats_per_token, f"{split}/perplexity": found.perplexity}
        return Report(figures, {"target tokens": f"{found.n_tokens:,}, the same at every evaluation"})

    def next_command(self, work: DenoisingWork, folder: Path) -> Sequence[str]:
        return ("transformer", "evaluate", str(folder), "--split", "validation")


def _evaluation(work: DenoisingWork, split: str) -> SpanEvaluation:
    return SpanEvaluation(work.corpus.evaluation(split), work.objective.corruption(work.corpus.tokenizer))
