"""What is reported of a trained model on a split of its data: the figures, and examples to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..base.transformer import EncoderDecoder
from ..data import ParallelCorpus, TextCorpus
from ..generation import translate
from ..models import DecoderOnly
from .bleu import bleu
from .perplexity import evaluate_pairs, evaluate_text


@dataclass(frozen=True)
class Example:
    """One example: what the model read, a person's answer (a translation, say), and the model's."""

    source: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Report:
    """figures: by name, such as `test/bleu`; notes: what they cannot be compared without; examples: some."""

    figures: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()


def report_translation(
    model: EncoderDecoder,
    corpus: ParallelCorpus,
    split: str,
    *,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    samples: int = 5,
) -> Report:
    """Translate a whole split; return BLEU, chrF, the likelihood of the references, and `samples` examples.

    Examples are spread evenly over the split. Perplexity is per token of the model's own vocabulary.
    """
    pairs = corpus.sentences(split)
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    hypotheses = translate(
        model, corpus.tokenizer, sources, beam_size=beam_size, length_penalty=length_penalty
    )
    score = bleu(hypotheses, references)
    likelihood = evaluate_pairs(model, corpus.evaluation(split))
    figures = {
        f"{split}/bleu": score.bleu,
        f"{split}/chrf": score.chrf,
        f"{split}/nll": likelihood.nats_per_token,
        f"{split}/perplexity": likelihood.perplexity,
    }
    chosen = [index * len(pairs) // samples for index in range(min(samples, len(pairs)))]
    examples = tuple(Example(sources[i], references[i], hypotheses[i]) for i in chosen)
    search = f"beam {beam_size}, length penalty {length_penalty}"
    notes = {"bleu signature": score.bleu_signature, "chrf signature": score.chrf_signature, "search": search}
    return Report(figures, notes, examples)


def report_text(model: DecoderOnly, corpus: TextCorpus, split: str) -> Report:
    """Return the likelihood of a whole split: nats per token, perplexity per token, bits per byte."""
    likelihood = evaluate_text(model, corpus.evaluation(split))
    return Report(
        {
            f"{split}/nll": likelihood.nats_per_token,
            f"{split}/perplexity": likelihood.perplexity,
            f"{split}/bits_per_byte": likelihood.bits_per_byte,
        }
    )
