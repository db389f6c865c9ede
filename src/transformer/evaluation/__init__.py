"""Measuring a model on a whole split: BLEU and chrF of translations, perplexity, bits per byte."""

from .bleu import TranslationScore, bleu
from .perplexity import Likelihood, TextLikelihood, evaluate_pairs, evaluate_text

__all__ = ["Likelihood", "TextLikelihood", "TranslationScore", "bleu", "evaluate_pairs", "evaluate_text"]
