"""Translation: an encoder-decoder, parallel data, each target token from the source and those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...analysis.attention_figure import draw_translations
from ...analysis.cost import Shape
from ...base.transformer import EncoderDecoder
from ...data import PairStream, ParallelCorpus, ParallelData
from ...evaluation import Report, evaluate_pairs, report_translation
from ...generation import translate
from ...training.objective import SequenceToSequence
from ...training.progress import Progress
from .task import Task, Work

TranslationWork = Work[EncoderDecoder, ParallelCorpus, SequenceToSequence]


class Translation(Task[EncoderDecoder, ParallelCorpus, SequenceToSequence]):
    """An encoder-decoder learns to translate."""

    data, objective, model = ParallelData, SequenceToSequence, EncoderDecoder
    needs = "an encoder-decoder needs parallel data"

    def prepare(self, objective: SequenceToSequence, corpus: ParallelCorpus) -> SequenceToSequence:
        return replace(objective, pad_id=corpus.tokenizer.pad)

    def longest(self, corpus: ParallelCorpus) -> int:
        longest = 0
        for split in corpus.splits:
            widths = np.maximum(*corpus.pairs(split).widths())
            kept = widths[widths <= corpus.config.max_length] if split == "train" else widths
            longest = max(longest, int(kept.max(initial=0)))
        return longest

    def stream(self, corpus: ParallelCorpus, objective: SequenceToSequence, seed: int) -> PairStream:
        return corpus.stream(seed)

    def largest(self, work: TranslationWork, accumulate: int) -> Shape:
        stream = work.corpus.stream(0)
        batches = (stream.batch(step, 0, accumulate) for step in range(stream.batches_per_epoch))
        shapes = ((len(batch.source), batch.target.shape[1] - 1, batch.source.shape[1]) for batch in batches)
        return Shape(*max(shapes, key=lambda shape: shape[0] * (shape[1] + shape[2])))

    def validate(self, work: TranslationWork) -> dict[str, float]:
        """The unsmoothed loss, in nats per token, and what follows from it."""
        pairs = evaluate_pairs(work.model, work.corpus.evaluation("validation"))
        return {"val/loss": pairs.nats_per_token, "val/perplexity": pairs.perplexity}

    def sample(self, work: TranslationWork) -> str:
        """Two translations."""
        sources = [source for source, _ in work.corpus.sentences("validation")[:2]]
        written = translate(work.model, work.corpus.tokenizer, sources, beam_size=1)
        return "\n".join(f"  {source}\n  → {text}" for source, text in zip(sources, written, strict=True))

    def report(self, work: TranslationWork, split: str) -> Report:
        options = work.options
        return report_translation(
            work.model,
            work.corpus,
            split,
            beam_size=options.beam_size,
            length_penalty=options.length_penalty,
            samples=options.samples,
        )

    def show(self, work: TranslationWork, report: Report, folder: Path, progress: Progress) -> None:
        """Show translations beside those of people, with figures of what the model looked at."""
        for example in report.examples:
            progress.message(f"  source     {example.source}")
            progress.message(f"  reference  {example.reference}")
            progress.message(f"  model      {example.hypothesis}\n")
        sentences = [example.source for example in report.examples[: work.options.figures]]
        try:
            drawn = draw_translations(work.model, work.corpus.tokenizer, sentences, folder / "figures")
        except ModuleNotFoundError as error:
            progress.warning(str(error))
        else:
            progress.message(f"cross-attention of {len(drawn)} translations: {folder / 'figures'}")

    def next_command(self, work: TranslationWork, folder: Path) -> Sequence[str]:
        return ("transformer", "translate", str(folder), work.corpus.sentences("validation")[0][0])
