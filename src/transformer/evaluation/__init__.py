"""Measuring a model on a whole split: BLEU and chrF of translations, perplexity, bits per byte."""

from .bleu import TranslationScore, bleu
from .perplexity import Likelihood, TextLikelihood, evaluate_pairs, evaluate_text
from .suite import Example, Report, report_text, report_translation

__all__ = [
    "Example",
    "Likelihood",
    "Report",
    "TextLikelihood",
    "TranslationScore",
    "bleu",
    "evaluate_pairs",
    "evaluate_text",
    "report_text",
    "report_translation",
]
