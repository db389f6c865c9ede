"""Measuring a model on a whole split: BLEU and chrF of translations, perplexity, bits per byte."""

from .answers import AnswerScore, evaluate_answers, report_answers
from .bleu import TranslationScore, bleu
from .classification import ClassificationScore, evaluate_classes, report_classes, score_predictions
from .masked import MaskedLikelihood, evaluate_masked, report_masked
from .perplexity import Likelihood, TextLikelihood, evaluate_pairs, evaluate_text
from .suite import Example, Report, report_text, report_translation

__all__ = [
    "AnswerScore",
    "ClassificationScore",
    "Example",
    "Likelihood",
    "MaskedLikelihood",
    "Report",
    "TextLikelihood",
    "TranslationScore",
    "bleu",
    "evaluate_answers",
    "evaluate_classes",
    "evaluate_masked",
    "evaluate_pairs",
    "evaluate_text",
    "report_answers",
    "report_classes",
    "report_masked",
    "report_text",
    "report_translation",
    "score_predictions",
]
