"""BLEU (Papineni et al. 2002) and chrF (Popović 2015) as sacreBLEU computes them (arXiv 1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TranslationScore:
    """Corpus scores from 0 to 100, and the signatures without which they cannot be compared.

    bleu: cased, of detokenised text, with sacreBLEU's own tokenization (13a). precisions: in percent, of
    n-grams for n = 1 to 4; brevity_penalty: from 0 to 1. chrf: chrF2, on characters.
    """

    bleu: float
    bleu_signature: str
    precisions: tuple[float, float, float, float]
    brevity_penalty: float
    chrf: float
    chrf_signature: str


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> TranslationScore:
    """Score detokenised translations, each against one reference.

    ValueError when there are none or unequal numbers; ModuleNotFoundError naming the extra to install when
    sacreBLEU is missing.
    """
    try:
        from sacrebleu import BLEU, CHRF
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "BLEU needs the package sacrebleu; install it with: pip install 'transformer-from-scratch[eval]'",
            name=error.name,
        ) from None
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} translations cannot be scored against {len(references)} references; "
            "give one reference for each translation, in the same order"
        )
    if not hypotheses:
        raise ValueError("there is no translation to score; give at least one")
    by_words, by_characters = BLEU(), CHRF()
    words = by_words.corpus_score(list(hypotheses), [list(references)])
    characters = by_characters.corpus_score(list(hypotheses), [list(references)])
    first, second, third, fourth = words.precisions
    return TranslationScore(
        words.score,
        str(by_words.get_signature()),
        (first, second, third, fourth),
        words.bp,
        characters.score,
        str(by_characters.get_signature()),
    )
