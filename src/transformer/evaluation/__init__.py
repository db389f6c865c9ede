"""Measuring a model: on a whole split (BLEU and chrF, perplexity, bits per byte), and on zero-shot tasks from files."""

from .answers import AnswerScore, evaluate_answers, report_answers
from .bleu import TranslationScore, bleu
from .classification import ClassificationScore, evaluate_classes, report_classes, score_predictions
from .masked import MaskedLikelihood, evaluate_masked, report_masked
from .perplexity import Likelihood, TextLikelihood, evaluate_pairs, evaluate_text
from .scoring import Score, score
from .suite import Example, Report, report_text, report_translation
from .tasks import TASKS, report_file, report_task

__all__ = [
    "TASKS",
    "AnswerScore",
    "ClassificationScore",
    "Example",
    "Likelihood",
    "MaskedLikelihood",
    "Report",
    "Score",
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
    "report_file",
    "report_masked",
    "report_task",
    "report_text",
    "report_translation",
    "score",
    "score_predictions",
]
