"""BLEU and chrF worked out by hand and against published examples."""

from __future__ import annotations

import builtins
import math
from collections import Counter
from typing import Any

import pytest

from transformer.evaluation import bleu


def words(n: int, sentence: str) -> Counter[tuple[str, ...]]:
    tokens = sentence.split()
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bleu_by_hand(hypotheses: list[str], references: list[str]) -> float:
    """Papineni et al. 2002, §2.3: for text whose words are already apart."""
    logarithms = []
    for n in range(1, 5):
        matches = sum(
            (words(n, h) & words(n, r)).total() for h, r in zip(hypotheses, references, strict=True)
        )
        logarithms.append(math.log(matches / sum(words(n, h).total() for h in hypotheses)))
    ours, theirs = (sum(len(s.split()) for s in side) for side in (hypotheses, references))
    return 100 * min(1, math.exp(1 - theirs / ours)) * math.exp(sum(logarithms) / 4)


HYPOTHESES = ["a dog runs through the deep snow", "two men sit on the bench and talk", "the child laughs"]
REFERENCES = [
    "a dog runs through deep snow today",
    "two men sit on a bench and talk",
    "the child is laughing loudly",
]


def test_bleu_equals_its_definition() -> None:
    found = bleu(HYPOTHESES, REFERENCES)
    assert found.bleu == pytest.approx(bleu_by_hand(HYPOTHESES, REFERENCES), abs=1e-9)
    assert found.brevity_penalty == pytest.approx(math.exp(1 - 20 / 18))
    assert found.precisions[0] == pytest.approx(100 * 15 / 18)


def test_it_is_cased_and_of_detokenised_text() -> None:
    exact = ["Ein Hund läuft, schnell.", "Zwei Männer (im Park) reden; sie lachen!"]
    assert bleu(exact, exact).bleu == pytest.approx(100)
    assert bleu([s.lower() for s in exact], exact).bleu < 90  # cased
    assert bleu(["Ein Hund läuft , schnell .", exact[1]], exact).bleu == pytest.approx(
        100
    )  # 13a splits commas
    assert bleu(exact, exact).chrf == pytest.approx(100)


def test_the_signatures_say_how_it_was_counted() -> None:
    found = bleu(HYPOTHESES, REFERENCES)
    assert found.bleu_signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found.chrf_signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_chrf_equals_its_definition() -> None:
    """chrF2 = F_2 of the mean n-gram precision and recall, n = 1 to 6, spaces left out (Popović 2015, §2)."""
    hypothesis, reference = "das Haus", "dass Haus"
    ours, theirs = (" ".join(s.replace(" ", "")) for s in (hypothesis, reference))
    matches = [(words(n, ours) & words(n, theirs)).total() for n in range(1, 7)]
    precision = sum(m / words(n, ours).total() for n, m in enumerate(matches, 1)) / 6
    recall = sum(m / words(n, theirs).total() for n, m in enumerate(matches, 1)) / 6
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert bleu([hypothesis], [reference]).chrf == pytest.approx(expected, abs=1e-9)


def test_unequal_or_no_translations_are_refused() -> None:
    with pytest.raises(
        ValueError, match="^2 translations cannot be scored against 1 references; give one referen"
    ):
        bleu(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="^there is no translation to score; give at least one$"):
        bleu([], [])


def test_a_missing_sacrebleu_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("sacrebleu"):
            raise ModuleNotFoundError("No module named 'sacrebleu'", name="sacrebleu")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    message = (
        r"^BLEU needs the package sacrebleu; install it with: pip install 'transformer-from-scratch\[eval\]'$"
    )
    with pytest.raises(ModuleNotFoundError, match=message):
        bleu(["a"], ["a"])
