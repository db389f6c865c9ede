"""Measuring a model on a whole split: BLEU and chrF of translations, perplexity, bits per byte."""

from .bleu import TranslationScore, bleu
from .perplexity import Likelihood, TextLikelihood, evaluate_pairs, evaluate_text
from .suite import Report, Translation, report, report_text, report_translation

__all__ = [
    "Likelihood",
    "Report",
    "TextLikelihood",
    "Translation",
    "TranslationScore",
    "bleu",
    "evaluate_pairs",
    "evaluate_text",
    "report",
    "report_text",
    "report_translation",
]
