"""Tasks: how each file's lines are read, and how answers are judged."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_docs import run as run_examples
from transformer.data import ByteTokenizer
from transformer.evaluation import tasks
from transformer.evaluation.scoring import Score
from transformer.evaluation.tasks import Proportion, Question, read_questions, report_file, report_task
from transformer.models import DecoderOnly, build, gpt

LINES: dict[str, tuple[dict[str, Any], Question]] = {
    "lambada": ({"context": "He saw the", "continuation": "dog"}, Question("He saw the", (" dog",))),
    "hellaswag": (
        {"activity_label": "Baking", "ctx_a": "[header] A cake [title] Mix it.", "ctx_b": "the Man",
         "endings": [" eats [step] it.", "sleeps."], "label": "1"},
        Question("Baking: A cake. Mix it. The man", (" eats it.", " sleeps."), 1),
    ),
    "arc": ({"query": "Question: Why? \n", "choices": ["a b", "c"], "gold": 0},
            Question("Question: Why?\nAnswer:", (" a b", " c"), 0)),
    "piqa": ({"query": "Question: How?\n", "choices": ["so", "thus"], "gold": 1},
             Question("Question: How?\nAnswer:", (" so", " thus"), 1)),
    "openbook_qa": ({"query": "The sky is", "choices": ["blue", "low"], "gold": 0},
                    Question("The sky is", (" blue", " low"), 0)),
}  # fmt: skip


def write(path: Path, *lines: Any) -> Path:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(scope="module")
def model() -> DecoderOnly:
    torch.manual_seed(2)
    built = build(gpt(259, 16, 2, 1, max_seq_len=64)).double()
    assert isinstance(built, DecoderOnly)
    return built.eval()


@pytest.mark.parametrize("task", tasks.TASKS)
def test_lines_become_questions_and_figures(task: str, model: DecoderOnly, tmp_path: Path) -> None:
    line, question = LINES[task]
    for name in ("rows.jsonl", "zipped.jsonl.gz"):
        path = write(tmp_path / name, line, line, line)
        assert read_questions(task, path) == [question] * 3
        assert read_questions(task, path, 2) == [question] * 2
    report = report_task(model, ByteTokenizer(), task, path, 2)
    assert report.figures[f"{task}/accuracy"] in (0.0, 1.0)
    assert "of 2, 95 % interval" in report.notes[f"{task}/accuracy"]


def judged(
    task: str, questions: list[Question], values: list[float], greedy: Sequence[bool] = ()
) -> dict[str, float]:
    """What a task makes of these log-likelihoods."""
    scores = [
        Score(value, hit, 1) for value, hit in zip(values, greedy or [False] * len(values), strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "score", lambda *_: scores)
        return dict(tasks.TASKS[task].judge(build(gpt(9, 8, 2, 1)), ByteTokenizer(), questions).figures)  # type: ignore[arg-type]


def test_the_most_probable_choice_is_the_answer_raw_or_by_length() -> None:
    questions = [
        Question("", (" aaaa", " bb"), 0),
        Question("", (" aaaa", " bb"), 1),
        Question("", (" a", " b"), 0),
    ]
    found = judged("arc", questions, [-4.0, -3.0, -4.0, -1.9, -2.0, -2.0])
    # −4/4 > −3/2, but −4 < −3; −4/4 < −1.9/2; of equals the first
    assert found["accuracy"] == pytest.approx(2 / 3) and found["accuracy_norm"] == 1.0
    assert found["accuracy_error"] == pytest.approx(math.sqrt(2 / 9 / 2))
    # by the characters of the choice alone −4/4 beats −1.2/1; with the blank counted −4/5 would lose to −1.2/2
    assert judged("arc", [Question("", (" aaaa", " b"), 0)], [-4.0, -1.2])["accuracy_norm"] == 1.0


def test_lambada_counts_greedy_words_and_loss_per_word() -> None:
    questions = [Question("", (" a",))] * 4
    found = judged("lambada", questions, [-1.0, -2.0, -3.0, -6.0], [True, False, True, False])
    assert found["accuracy"] == 0.5 and found["perplexity"] == pytest.approx(math.exp(3.0))


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]
)
def test_the_interval_is_wilsons(hits: int, n: int, low: float, high: float) -> None:
    """The figures are those of Newcombe 1998, Statistics in Medicine 17, table I."""
    assert Proportion(hits, n).interval == pytest.approx((low, high), abs=5e-5)


def test_the_standard_error_is_that_of_a_mean() -> None:
    values = torch.tensor([1.0] * 98 + [0.0] * 202, dtype=torch.float64)
    assert Proportion(98, 300).standard_error == pytest.approx(float(values.std() / math.sqrt(300)))
    assert Proportion(1, 1).standard_error == math.inf


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("lambada", "not json", r"line 2 is not JSON; expected one object a line$"),
        ("lambada", "[" * 100_000, r"line 2 is not JSON"),
        ("lambada", [1], r"line 2 is not an object with fields$"),
        ("lambada", {"context": "a"}, r"line 2 has no 'continuation'; it has context$"),
        ("lambada", {"context": 3, "continuation": "a"}, r"line 2: context is not text$"),
        ("arc", {"query": "a", "choices": ["b"], "gold": 0}, r"line 2: choices is not a list of two texts or more"),
        ("arc", {"query": "a", "choices": ["b", ""], "gold": 0}, r"line 2: choices is not a list of two texts"),
        ("arc", {"query": "a", "choices": ["b", "c"], "gold": 2}, r"line 2: gold is '2', and should be from 0 to 1$"),
        ("arc", {"query": "a", "choices": ["b", "c"], "gold": True}, r"line 2: gold is 'True'"),
        ("arc", {"query": "a", "choices": ["b", "c"], "gold": "²"}, r"line 2: gold is '²'"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_is_named(task: str, line: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", LINES[task][0], line)
    with pytest.raises(ValueError, match=message) as caught:
        read_questions(task, path)
    assert "\n" not in str(caught.value)
    assert len(read_questions(task, path, 1)) == 1


def test_a_limit_and_a_file_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^limit must be 1 or more, got 0$"):
        read_questions("arc", tmp_path / "rows.jsonl", 0)
    with pytest.raises(ValueError, match=r"^there is no file .*rows.jsonl\[.gz\]"):
        read_questions("arc", tmp_path / "rows.jsonl")


def test_a_text_file_is_predicted_token_by_token_in_windows(model: DecoderOnly, tmp_path: Path) -> None:
    text = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 3
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    figures = report_file(model, ByteTokenizer(), path).figures
    tokens, nll = ByteTokenizer().encode(text), 0.0
    for start in range(0, len(tokens) - 1, 64):
        window = torch.tensor(tokens[start : start + 65])
        with torch.no_grad():
            logits = model(window[None, :-1])[0]
        nll += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    count = len(tokens) - 1  # a byte each
    assert figures["text/nll"] == pytest.approx(nll / count, abs=1e-9)
    assert figures["text/perplexity"] == pytest.approx(math.exp(nll / count))
    assert figures["text/bits_per_byte"] == pytest.approx(nll / count / math.log(2))


def test_the_page_on_evaluation_prints_what_it_says() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
    attempted, report = run_examples(page.read_text(encoding="utf-8"), page.name)
    assert attempted >= 6 and not report, report
