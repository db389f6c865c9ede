"""Each filter against its definition in NumPy, and the draws against the distribution they claim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.generation.toys import FunctionDecoder
from transformer.generation import Sampling, generate
from transformer.generation.sampling import draw, min_p, penalize, top_k, top_p, uniform

# Few distinct values, so that ties are common, beside any values at all.
rows = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12) | st.lists(
    st.floats(-30, 30), min_size=1, max_size=12
)


def probabilities(logits: list[float]) -> np.ndarray:
    weights = np.exp(np.array(logits) - max(logits))
    return weights / weights.sum()


def kept(filtered: torch.Tensor, logits: list[float]) -> list[bool]:
    """Which tokens a filter kept; those must have their logits unchanged."""
    alive = filtered[0] > -torch.inf
    assert torch.equal(filtered[0][alive], tensor(logits)[0][alive])
    return alive.tolist()


def tensor(logits: list[float]) -> torch.Tensor:
    return torch.tensor([logits], dtype=torch.float64)


@given(rows, st.integers(1, 15))
def test_top_k(logits: list[float], k: int) -> None:
    more_probable = [sum(other > z for other in logits) for z in logits]
    assert kept(top_k(tensor(logits), k), logits) == [n < k for n in more_probable]


@given(rows, st.floats(0.01, 0.999))
def test_top_p(logits: list[float], p: float) -> None:
    chances = probabilities(logits)
    before = np.array([chances[np.array(logits) > z].sum() for z in logits])
    assume(np.abs(before - p).min() > 1e-9)
    assert kept(top_p(tensor(logits), p), logits) == (before < p).tolist()


@given(rows, st.floats(0.001, 1))
def test_min_p(logits: list[float], p: float) -> None:
    chances = probabilities(logits)
    ratio = chances / chances.max()
    assume(np.abs(np.delete(ratio, ratio.argmax()) - p).min(initial=1) > 1e-9)
    assert kept(min_p(tensor(logits), p), logits) == (ratio >= p).tolist()


@given(rows)
def test_neutral_settings_change_nothing(logits: list[float]) -> None:
    x = tensor(logits)
    for neutral in (top_k(x, len(logits)), top_k(x, 99), top_p(x, 1.0), min_p(x, 0.0), Sampling().filter(x)):
        assert torch.equal(neutral, x)


def test_top_p_keeps_a_tie_whole() -> None:
    x = torch.tensor([[0.4, 0.25, 0.25, 0.1]], dtype=torch.float64).log()
    assert top_p(x, 0.39).isfinite().tolist() == [[True, False, False, False]]
    assert top_p(x, 0.6).isfinite().tolist() == [[True, True, True, False]]


def test_top_p_1_keeps_a_tail_too_small_to_be_summed() -> None:
    x = torch.tensor([[0.0, -60.0, -90.0]])
    assert torch.equal(Sampling(top_p=1.0).filter(x), x.double())


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(0.1, 4), st.permutations(range(9)))
def test_filters_do_not_depend_on_the_order_of_the_vocabulary(
    logits: list[float], temperature: float, permutation: list[int]
) -> None:
    order = [i for i in permutation if i < len(logits)]
    sampling = Sampling(temperature, top_k=4, top_p=0.9, min_p=0.05)
    x = tensor(logits)
    assert torch.equal(sampling.filter(x)[:, order], sampling.filter(x[:, order]))


def test_the_filters_apply_in_the_order_of_the_fields() -> None:
    logits, temperature = [3.0, 2.5, 2.0, 0.0, -1.0], 2.0
    scaled = [z / temperature for z in logits]
    chances = probabilities(scaled[:3])  # top-k 3 first: top-p then measures what is left
    assert chances[0] + chances[1] > 0.7 > probabilities(scaled)[:2].sum()
    filtered = Sampling(temperature, top_k=3, top_p=0.7).filter(tensor(logits))
    assert filtered[0].tolist() == [1.5, 1.25, -math.inf, -math.inf, -math.inf]
    assert (
        Sampling(temperature, min_p=0.7).filter(tensor(logits))[0].isfinite().tolist()
        == [True] * 2 + [False] * 3
    )


def chi_square_tail(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """The probability of counts at least as far from `expected` (Pearson's test)."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((counts.numel() - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


LOGITS = tensor([0.3, -1.0, 2.0, 0.0, 1.1, -2.0, 0.5])
N = 20000


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.5), Sampling(1.7, top_k=5), Sampling(1.0, top_p=0.8)]
)
def test_tokens_come_as_often_as_their_probability_says(sampling: Sampling) -> None:
    expected = sampling.filter(LOGITS).softmax(1)[0]
    drawn = sampling.choose(LOGITS.expand(N, -1), 0, list(range(N)))
    counts = drawn.bincount(minlength=7).double()
    assert counts[expected == 0].sum() == 0
    assert chi_square_tail(counts[expected > 0], N * expected[expected > 0]) > 1e-3


def test_neighbouring_rows_and_steps_and_seeds_are_independent() -> None:
    expected = LOGITS.softmax(1)[0]
    pairs = (expected[:, None] * expected).flatten() * N

    def tokens(places: list[tuple[int, int, int]]) -> torch.Tensor:
        points = torch.tensor([uniform(*place) for place in places], dtype=torch.float64)
        return torch.searchsorted(expected.cumsum(0), points)

    base = tokens([(5, 3, i) for i in range(N)])
    for other in (
        [(5, 3, i + 1) for i in range(N)],
        [(5, 4, i) for i in range(N)],
        [(6, 3, i) for i in range(N)],
    ):
        counts = (7 * base + tokens(other)).bincount(minlength=49).double()
        assert chi_square_tail(counts, pairs) > 1e-3


def test_a_draw_is_a_function_of_seed_step_and_row() -> None:
    x = LOGITS.expand(50, -1)
    here = draw(x, 1, 2, list(range(50)))
    assert torch.equal(here, draw(x, 1, 2, list(range(50))))
    assert torch.equal(here[[7, 30]], draw(x[:2], 1, 2, [7, 30]))  # whatever else is in the batch
    assert not torch.equal(here, draw(x, 2, 2, list(range(50))))
    assert not torch.equal(here, draw(x, 1, 3, list(range(50))))
    assert uniform(1, 2, 3) == 0.7782183832362068  # for ever: it is part of what a seed means


def test_a_draw_never_leaves_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 1 - 2**-52
    x = tensor([0.1 * i for i in range(37)] + [-math.inf, -math.inf])
    for point, expected in ((largest, 36), (0.0, 0)):
        monkeypatch.setattr("transformer.generation.sampling.uniform", lambda *_, point=point: point)
        assert draw(x, 0, 0, [0]).tolist() == [expected]
    x = tensor([-math.inf, 0.0, 1.0])
    assert draw(x, 0, 0, [0]).tolist() == [1]  # a point of 0 does not select a token of probability 0
    assert largest == (2**63 - 1 >> 11) / 2**52


def test_greedy_takes_the_most_probable_token_and_the_lower_id_of_two() -> None:
    assert Sampling(0.0).choose(torch.tensor([[1.0, 5.0, 5.0], [9.0, 0.0, 9.0]]), 0, [0, 1]).tolist() == [
        1,
        0,
    ]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(broken: float) -> None:
    with pytest.raises(
        ValueError, match="^the model's logits are not finite, so no token can be drawn; check its"
    ):
        draw(tensor([0.0, broken]), 0, 0, [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"^temperature must be 0 \(greedy\) or more, got -1.0; 1 is neutral$"),
        ({"temperature": math.nan}, r"^temperature must be .* got nan"),
        ({"temperature": math.inf}, r"^temperature must be .* got inf"),
        ({"top_k": 0}, r"^top_k must be at least 1, got 0; leave it out to keep every token$"),
        ({"top_p": 1.1}, r"^top_p must be more than 0 and at most 1 \(every token\), got 1.1$"),
        ({"top_p": 0.0}, r"^top_p must be more than 0"),
        ({"min_p": -0.1}, r"^min_p must be between 0 \(every token\) and 1, got -0.1$"),
        ({"min_p": 2.0}, r"^min_p must be between 0 \(every token\) and 1, got 2.0$"),
        ({"repetition_penalty": 0.0}, r"^repetition_penalty must be above 0, got 0.0; 1 is none$"),
        ({"repetition_penalty": math.inf}, r"^repetition_penalty must be above 0, got inf"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


# ---------------------------------------------------------------- the repetition penalty, and the processors of others


@given(rows, st.data(), st.floats(0.2, 5))
def test_the_penalty(logits: list[float], data: st.DataObject, penalty: float) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    expected = [
        (z / penalty if z > 0 else z * penalty) if s else z for z, s in zip(logits, seen, strict=True)
    ]
    assert penalize(tensor(logits), torch.tensor([seen]), penalty).tolist() == [expected]


def test_a_penalty_counts_the_prompt_and_what_was_written_but_no_padding() -> None:
    def says(seen: tuple[int, ...]) -> list[float]:
        return [3.0, 2.9, 2.8, -1.0]

    model = FunctionDecoder(says)
    prompts, mask = torch.tensor([[2, 0], [3, 3]]), torch.tensor([[0, 1], [1, 1]])
    found = generate(model, prompts, 4, temperature=0, repetition_penalty=10, attention_mask=mask)
    assert found[:, 2:].tolist() == [[1, 2, 0, 0], [0, 1, 2, 0]]


PROCESSORS = {
    "temperature": (Sampling(0.7), lambda m: m.TemperatureLogitsWarper(0.7)),
    "top_k": (Sampling(top_k=5), lambda m: m.TopKLogitsWarper(5)),
    "top_p": (Sampling(top_p=0.7), lambda m: m.TopPLogitsWarper(0.7)),
    "min_p": (Sampling(min_p=0.2), lambda m: m.MinPLogitsWarper(0.2)),
    "penalty": (Sampling(repetition_penalty=1.3), lambda m: m.RepetitionPenaltyLogitsProcessor(1.3)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_filter_is_the_processor_of_transformers(name: str) -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    sampling, make = PROCESSORS[name]
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(20, 40, generator=generator, dtype=torch.float64)
    tokens = torch.randint(40, (20, 7), generator=generator)
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, tokens, True)
    ours = sampling.filter(sampling.penalized(logits, seen if name == "penalty" else None))
    torch.testing.assert_close(ours, make(processors)(tokens, logits.clone()), rtol=1e-12, atol=0)
