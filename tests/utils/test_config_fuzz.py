"""Fuzzed configurations against the sample schema: refused in one line, or accepted without a loss."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.fuzzing import Outcome, fuzz
from tests.utils.sample_schema import KINDS, Sample
from transformer.utils.codec import decode, encode
from transformer.utils.layering import Layers


def check_build(config: Sample, layers: Layers) -> None:
    """What must work with an accepted configuration: use it, and write it and read it again."""
    assert all(layer.size() >= 1 for layer in config.layers)
    assert decode(Sample, encode(config), kinds=KINDS) == config


def run(folder: Path, *, count: int, seed: int) -> list[Outcome]:
    return list(fuzz(Sample, Sample(), KINDS, check_build, count=count, seed=seed, folder=folder))


def check_spread(outcomes: list[Outcome]) -> None:
    refused = [o for o in outcomes if o.refusal is not None]
    assert 0.4 < len(refused) / len(outcomes) < 0.95, "the fuzzer must make good and bad configurations"
    done = Counter(name for o in outcomes for name in o.damage)
    assert len(done) == 13, f"every kind of damage must occur: {done}"
    assert all(o.refusal is None for o in outcomes if not o.damage)


def test_300_fuzzed_configurations(tmp_path: Path) -> None:
    check_spread(run(tmp_path, count=300, seed=0))


def test_a_case_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    once, again = run(tmp_path, count=20, seed=1), run(tmp_path, count=20, seed=1)
    assert once == again != run(tmp_path, count=20, seed=2)


def test_the_fuzzer_reports_what_is_silently_ignored(tmp_path: Path) -> None:
    def broken(config: Sample, layers: Layers) -> None:
        raise KeyError("lost")

    with pytest.raises(AssertionError, match="case .*KeyError"):
        list(fuzz(Sample, Sample(), KINDS, broken, count=20, seed=0, folder=tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_10000_fuzzed_configurations(tmp_path: Path) -> None:
    check_spread(run(tmp_path, count=10_000, seed=3))
