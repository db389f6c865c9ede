"""Speculative decoding: the same distribution, whatever is guessed; the same text, where there is no chance in it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from tests.generation.families import pair
from tests.generation.toys import FunctionDecoder, random_tree
from transformer.enhancements.attention.linear import linear_attention
from transformer.enhancements.attention.sliding_window import sliding_window
from transformer.generation import DraftModel, PromptLookup, Sampling, speculate, stream
from transformer.generation.speculative import Guess, Tally, _chances, _judge, verdict
from transformer.models import build, gpt

pytestmark = pytest.mark.shapes_unchecked

VOCAB = 19


def model(seed: int, *changes: Any) -> Any:
    torch.manual_seed(seed)
    config = gpt(VOCAB, d_model=16, n_heads=2, n_layers=2, max_seq_len=60)
    for change in changes:
        config = change(config)
    built = build(config).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return built


def text(found: Any) -> list[int]:
    return [int(token) for token in found]


PROMPT = torch.tensor([[3, 4, 5, 3, 4, 6, 7, 3, 4]])
DRAFTERS = {
    "another": lambda target: DraftModel(model(9), 4),
    "the model itself": lambda target: DraftModel(target, 3),
    "look-up": lambda target: PromptLookup(6),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize(
    ("changes", "penalty"), [((), 1.0), ((sliding_window(3),), 1.3)], ids=["full", "window and penalty"]
)
def test_greedy_text_is_that_of_the_model_alone(drafter: str, changes: Any, penalty: float) -> None:
    target = model(1, *changes)
    sampling = Sampling(0.0, repetition_penalty=penalty)
    plain = text(stream(target, PROMPT, 25, sampling))
    guesser = DRAFTERS[drafter](target)
    assert text(speculate(target, guesser, PROMPT, 25, sampling)) == plain
    stop = plain[12]
    end = plain.index(stop) + 1
    assert text(speculate(target, guesser, PROMPT, 25, sampling, stop=[stop])) == plain[:end]
    if drafter == "the model itself":
        assert guesser.tally.rate == 1 and guesser.tally.calls < 25
    assert guesser.tally.calls <= 25 + end and 0 <= guesser.tally.rate <= 1


@pytest.mark.parametrize("name", ["mistral", "gpt_neo"])
def test_published_models_too(name: str, tmp_path: Any) -> None:
    for _, ours in pair(name, tmp_path):
        plain = text(stream(ours, PROMPT, 15, Sampling(0.0)))
        for guesser in (PromptLookup(), DraftModel(ours, 3)):
            assert text(speculate(ours, guesser, PROMPT, 15, Sampling(0.0))) == plain


OPTIONS = [
    Sampling(), Sampling(0.6), Sampling(1.3, top_k=3), Sampling(1.0, top_p=0.8), Sampling(0.9, min_p=0.2),
    Sampling(1.0, repetition_penalty=1.7),
]  # fmt: skip


@pytest.mark.parametrize("sampling", OPTIONS, ids=str)
def test_the_distribution_is_exactly_that_of_the_model(sampling: Sampling) -> None:
    """Enumerated: all pairs of guesses, and what becomes of each; whatever q is, p comes out."""
    target, draft = random_tree(4, 1), random_tree(4, 2)
    start = (3, 0)

    def chances(tree: Any, seen: tuple[int, ...]) -> torch.Tensor:
        return _chances(sampling, torch.tensor([tree((), seen)], dtype=torch.float64), seen)

    found = torch.zeros(4, 4, dtype=torch.float64)
    p1, q1 = chances(target, start), chances(draft, start)
    for x in q1.nonzero()[:, 0].tolist():
        p2, q2 = chances(target, (*start, x)), chances(draft, (*start, x))
        for y in q2.nonzero()[:, 0].tolist():
            drawn = q1[x] * q2[y]
            (keep1, rest1), (keep2, rest2) = verdict(p1, q1, x), verdict(p2, q2, y)
            found[x, y] += drawn * keep1 * keep2
            if keep2 < 1:
                found[x] += drawn * keep1 * (1 - keep2) * rest2 / rest2.sum()
            if keep1 < 1:  # then the second token is drawn as the model would
                for z in rest1.nonzero()[:, 0].tolist():
                    found[z] += drawn * (1 - keep1) * rest1[z] / rest1.sum() * chances(target, (*start, z))
    expected = torch.stack([p1[x] * chances(target, (*start, x)) for x in range(4)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sampling", "guesses"),
    [
        (Sampling(), "draft"),
        (Sampling(1.3, top_p=0.8, repetition_penalty=1.7), "draft"),
        (Sampling(0.8), "look-up"),
    ],
    ids=["draft", "draft and filters", "look-up"],
)
def test_what_is_drawn_follows_the_distribution(sampling: Sampling, guesses: str) -> None:
    """χ² of three tokens together, over seeds; and of the code itself, not of the equation."""
    target, draft = random_tree(3, 5, 1.0), random_tree(3, 6, 1.0)
    big = FunctionDecoder(lambda seen: target((), seen))
    small = FunctionDecoder(lambda seen: draft((), seen))
    prompt, n, draws = (0, 1, 0, 2, 0), 3, 250
    count: Counter[tuple[int, ...]] = Counter()
    for number in range(draws):
        seeded = Sampling(**{**vars(sampling), "seed": number})
        drafter: Any = DraftModel(Cached(small), 2) if guesses == "draft" else PromptLookup(2)
        count[tuple(speculate(Cached(big), drafter, torch.tensor([prompt]), n, seeded))] += 1
    statistic, cells = 0.0, 0
    for outcome in itertools.product(range(3), repeat=n):
        chance = 1.0
        for i, token in enumerate(outcome):
            seen = (*prompt, *outcome[:i])
            mask = torch.zeros(1, 3, dtype=torch.bool)
            mask[0, list(seen)] = True
            logits = torch.tensor([target((), seen)], dtype=torch.float64)
            penalized = sampling.penalized(logits, mask if sampling.repetition_penalty != 1 else None)
            chance *= float(sampling.distribution(penalized)[0, token])
        if chance == 0:
            assert count[outcome] == 0
        elif chance * draws >= 5:
            statistic += (count[outcome] - chance * draws) ** 2 / (chance * draws)
            cells += 1
    assert cells >= 4
    assert statistic < cells + 4 * (2 * cells) ** 0.5, (statistic, cells)


class Cached:
    """A function model whose logits are remembered, and whose state can be rolled back."""

    def __init__(self, model: FunctionDecoder) -> None:
        self.model, self.stack = model, model.stack
        self.known: dict[tuple[int, ...], list[float]] = model.__dict__.setdefault("known", {})

    def parameters(self) -> Any:
        return self.model.parameters()

    def modules(self) -> Any:
        return self.model.modules()

    def initial_state(self, storage: Any = None) -> Any:
        return History()

    def decode(self, tokens: torch.Tensor, state: Any, attention_mask: Any = None) -> torch.Tensor:
        out = []
        for token in tokens[0].tolist():
            state.tokens = (*state.tokens, token)
            if state.tokens not in self.known:
                self.known[state.tokens] = self.model.logits(state.tokens)
            out.append(self.known[state.tokens])
        return torch.tensor([out], dtype=torch.float64)


class History:
    def __init__(self) -> None:
        self.tokens: tuple[int, ...] = ()

    def select(self, rows: torch.Tensor) -> None:
        raise AssertionError("one row only")

    def truncate(self, ends: torch.Tensor) -> None:
        self.tokens = self.tokens[: int(ends[0, 0])]


def test_a_guess_is_kept_with_the_probability_of_the_paper() -> None:
    p, q = (
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
        torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64),
    )
    logits = p.log()[None].repeat(2, 1)
    kept, instead = 0, Counter[int]()
    for seed in range(1500):
        new = _judge(logits, [Guess(0, q)], [7], Sampling(seed=seed), 0)
        kept += len(new) == 2
        instead[new[0]] += len(new) == 1
    assert kept / 1500 == pytest.approx(1 / 3, abs=0.03)
    assert instead[0] == 0  # p − q is negative there
    assert instead[1] / 1000 == pytest.approx(0.5, abs=0.05)


def test_look_up_takes_the_longest_and_latest_place() -> None:
    look = PromptLookup(3, longest=2)
    assert look.follow([1, 2, 9, 5, 2, 8, 1, 2]) == [9, 5, 2]
    assert look.follow([1, 2, 9, 4, 1, 2, 8, 1, 2]) == [8, 1, 2]
    assert look.follow([4, 2, 9, 5, 2, 8, 1, 2]) == [8, 1, 2]
    assert look.follow([1, 2, 3]) == [] and look.follow([1]) == []


def test_what_cannot_be_sped_up_is_refused() -> None:
    target = model(1)
    with pytest.raises(
        ValueError, match=r"^the draft has a vocabulary of 5 tokens and the model one of 19; a draft"
    ):
        text(
            speculate(
                target, DraftModel(Cached(FunctionDecoder(lambda seen: [0.0] * 5))), PROMPT, 9, Sampling()
            )
        )
    with pytest.raises(
        ValueError, match=r"^speculative decoding continues one prompt at a time, got 2; call it for"
    ):
        speculate(target, PromptLookup(), PROMPT.repeat(2, 1), 9, Sampling())
    recurrent = model(1, linear_attention())
    with pytest.raises(
        ValueError, match=r"^a RecurrentState cannot take back .* generate without a draft$"
    ) as caught:
        speculate(recurrent, PromptLookup(), PROMPT, 9, Sampling())
    assert "\n" not in str(caught.value)
    for wrong in (lambda: PromptLookup(0), lambda: DraftModel(target, 0)):
        with pytest.raises(
            ValueError, match=r"^n_tokens must be at least 1 guess, got 0; leave the draft out"
        ):
            wrong()
    with pytest.raises(ValueError, match=r"^longest must be at least 1 token to look up, got 0$"):
        PromptLookup(3, 0)
    with pytest.raises(ValueError, match=r"are more than max_seq_len 60"):
        speculate(target, PromptLookup(), PROMPT, 52, Sampling())
    assert len(text(speculate(target, PromptLookup(), PROMPT, 51, Sampling()))) == 51
    assert text(speculate(target, PromptLookup(), PROMPT, 0, Sampling())) == []
    assert Tally().rate == 0
