"""Zero-shot tasks from local files, one JSON object a line: the last word of a passage, and multiple choice.

| task | fields of a line | context | scored |
|---|---|---|---|
| lambada | context, continuation | the context | " " + continuation |
| hellaswag | activity_label, ctx_a, ctx_b, endings, label | label: ctx_a ctx_b | " " + each ending |
| arc, piqa | query, choices, gold | query, a new line, "Answer:" | " " + each choice |
| openbook_qa | query, choices, gold | query | " " + each choice |

LAMBADA (arXiv 1606.06031) counts a passage where every token of the last word is the most probable; its perplexity
is per word. In multiple choice (HellaSwag, arXiv 1905.07830; ARC, 1803.05457; PIQA, 1911.11641; OpenBookQA,
1809.02789) the most probable choice is the answer: by its log-likelihood, or by that over its number of characters.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..data import DataError, TextEvaluation, Tokenizer
from ..data.files import find_file, read_blocks, read_lines
from ..models import DecoderOnly
from .perplexity import evaluate_text
from .scoring import longest, score
from .suite import Report

Z = 1.959964
"""Of a normal distribution 95 % lies within so many standard deviations."""
WINDOW = 1024


@dataclass(frozen=True)
class Question:
    """A context, the texts that may follow it, and which of them does. A passage has its last word alone."""

    context: str
    choices: tuple[str, ...]
    gold: int = 0


@dataclass(frozen=True)
class Proportion:
    """hits of n."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def standard_error(self) -> float:
        """That of the mean of n zeros and ones; of a single one it cannot be told, and is infinite."""
        return math.sqrt(self.value * (1 - self.value) / (self.n - 1)) if self.n > 1 else math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which stays within 0 and 1."""
        share = Z * Z / self.n
        middle, half = (
            self.value + share / 2,
            Z * math.sqrt((self.value * (1 - self.value) + share / 4) / self.n),
        )
        return (middle - half) / (1 + share), (middle + half) / (1 + share)


@dataclass(frozen=True)
class Line:
    """One line of a file, and where it stands."""

    data: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str:
        """Return a field that is text."""
        value = self._field(name)
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {name} is not text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a field that is a list of two texts or more."""
        value = self._field(name)
        if (
            not isinstance(value, list)
            or len(value) < 2
            or not all(isinstance(one, str) and one for one in value)
        ):
            raise DataError(f"{self.where}: {name} is not a list of two texts or more, none empty")
        return tuple(value)

    def number(self, name: str, below: int) -> int:
        """Return a field that is a number from 0, perhaps written as text."""
        value = self._field(name)
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 5 else value
        if type(number) is not int or not 0 <= number < below:
            raise DataError(
                f"{self.where}: {name} is {str(value)[:40]!r}, and should be from 0 to {below - 1}"
            )
        return number

    def _field(self, name: str) -> Any:
        if name not in self.data:
            raise DataError(
                f"{self.where} has no {name!r}; it has {', '.join(map(str, self.data))[:200] or 'nothing'}"
            )
        return self.data[name]


@dataclass(frozen=True)
class Task:
    """How to read a line of a task's files, and how the answers are judged."""

    read: Callable[[Line], Question]
    judge: Callable[[DecoderOnly, Tokenizer, Sequence[Question]], Report]


def _passage(line: Line) -> Question:
    return Question(line.text("context"), (" " + line.text("continuation"),))


def _story(line: Line) -> Question:
    """HellaSwag, whose marks in brackets come from the pages that it was made of."""
    endings = tuple(" " + _without_marks(ending) for ending in line.texts("endings"))
    context = f"{line.text('activity_label')}: {line.text('ctx_a')} {line.text('ctx_b').capitalize()}"
    return Question(_without_marks(context), endings, line.number("label", len(endings)))


def _without_marks(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _question(line: Line) -> Question:
    asked = _sentence(line)
    return Question(f"{asked.context.rstrip()}\nAnswer:", asked.choices, asked.gold)


def _sentence(line: Line) -> Question:
    choices = line.texts("choices")
    return Question(
        line.text("query"), tuple(" " + one for one in choices), line.number("gold", len(choices))
    )


def last_word(model: DecoderOnly, tokenizer: Tokenizer, questions: Sequence[Question]) -> Report:
    """Return in how many passages the last word is what the model would write, and the perplexity per word."""
    scores = score(model, tokenizer, [(one.context, one.choices[one.gold]) for one in questions])
    losses = [-one.log_likelihood for one in scores]
    mean = statistics.fmean(losses)
    error = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf
    figures, notes = _told("accuracy", Proportion(sum(one.greedy for one in scores), len(scores)))
    low, high = _exp(mean - Z * error), _exp(mean + Z * error)
    notes["perplexity"] = f"95 % interval {low:.1f} to {high:.1f}"
    return Report({**figures, "perplexity": _exp(mean)}, notes)


def multiple_choice(model: DecoderOnly, tokenizer: Tokenizer, questions: Sequence[Question]) -> Report:
    """Return in how many questions the right choice is the most probable, raw and per character.

    Characters are counted without the blank that joins a choice to the context; of equal choices the first is taken.
    """
    pairs = [(one.context, choice) for one in questions for choice in one.choices]
    scores = iter(score(model, tokenizer, pairs))
    raw = normalized = 0
    for one in questions:
        found = [next(scores).log_likelihood for _ in one.choices]
        by_length = [
            value / len(choice.removeprefix(" ")) for value, choice in zip(found, one.choices, strict=True)
        ]
        raw += found.index(max(found)) == one.gold
        normalized += by_length.index(max(by_length)) == one.gold
    plain, plain_notes = _told("accuracy", Proportion(raw, len(questions)))
    divided, divided_notes = _told("accuracy_norm", Proportion(normalized, len(questions)))
    return Report({**plain, **divided}, {**plain_notes, **divided_notes})


def _told(name: str, proportion: Proportion) -> tuple[dict[str, float], dict[str, str]]:
    """A proportion as figures, and as a note."""
    low, high = proportion.interval
    figures = {name: proportion.value, f"{name}_error": proportion.standard_error}
    return figures, {name: f"{proportion.hits} of {proportion.n}, 95 % interval {low:.4f} to {high:.4f}"}


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "lambada": Task(_passage, last_word),
        "hellaswag": Task(_story, multiple_choice),
        "arc": Task(_question, multiple_choice),
        "piqa": Task(_question, multiple_choice),
        "openbook_qa": Task(_sentence, multiple_choice),
    }
)
"""The tasks by name."""


def read_questions(task: str, path: str | Path, limit: int | None = None) -> list[Question]:
    """Return the questions of a task's file (`.jsonl`, `.jsonl.gz`), or the first `limit` of them.

    DataError names the line and the field of what cannot be used.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be 1 or more, got {limit}")
    return [TASKS[task].read(line) for line in islice(_lines(find_file(Path(path))), limit)]


def _lines(path: Path) -> Iterator[Line]:
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{where} is not JSON; expected one object a line") from None
        if not isinstance(data, dict):
            raise DataError(f"{where} is not an object with fields")
        yield Line(data, where)


def report_task(
    model: DecoderOnly, tokenizer: Tokenizer, task: str, path: str | Path, limit: int | None = None
) -> Report:
    """Measure a model on a task's file."""
    found = TASKS[task].judge(model, tokenizer, read_questions(task, path, limit))
    figures = {f"{task}/{name}": value for name, value in found.figures.items()}
    return Report(figures, {f"{task}/{name}": note for name, note in found.notes.items()})


def report_file(model: DecoderOnly, tokenizer: Tokenizer, path: str | Path) -> Report:
    """Measure how well a model predicts a whole text file, in windows that follow one another.

    Each window has as many tokens as the model can read, at most `WINDOW`, and sees nothing of those before it.
    """
    text = "".join(read_blocks(find_file(Path(path))))
    tokens = tokenizer.encode(text)
    context = min(longest(model) or WINDOW, WINDOW)
    n_bytes = len(text.encode()) - len(tokenizer.token_bytes(tokens[0]))
    ids = np.array(tokens, dtype=np.int64)
    found = evaluate_text(model, TextEvaluation(ids, context=context, batch_size=1, n_bytes=n_bytes))
    figures = {
        "text/nll": found.nats_per_token,
        "text/perplexity": found.perplexity,
        "text/bits_per_byte": found.bits_per_byte,
    }
    return Report(figures, {"text/tokens": f"{found.n_tokens:,}, in windows of {context}"})
