"""Texts are those of `transformers`, token for token, for every family of decoders, and a cache changes none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generation.families import NAMES, WINDOW, pair, prompts
from transformer.generation import beam_generate, generate

pytestmark = pytest.mark.shapes_unchecked

NEW = 3 * WINDOW - 2  # with the shortest prompt, more than three windows
PUBLISHED: dict[str, Any] = {"normalization": "power", "stopping": "worse", "at_limit": "cut"}
"""How `transformers` searches unless told otherwise."""


@pytest.fixture(scope="module", params=NAMES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from pair(request.param, tmp_path_factory.mktemp("model"))


def theirs_writes(model: Any, stop: int | list[int], **options: Any) -> Tensor:
    tokens, mask = prompts()
    return model.generate(  # type: ignore[no-any-return]
        tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=stop, pad_token_id=1, **options
    )  # fmt: skip


def padded(row: Tensor, width: int) -> list[int]:
    return [*row.tolist(), *[1] * (width - len(row))]


def same(found: Tensor, expected: Tensor) -> None:
    """Equal up to padding at the end, which `transformers` sometimes has one column more of."""
    width = max(found.shape[1], expected.shape[1])
    assert [padded(row, width) for row in found] == [padded(row, width) for row in expected]


@torch.no_grad()
def test_greedy_and_beams_write_what_transformers_writes(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    tokens, mask = prompts()
    free = generate(ours, tokens, NEW, temperature=0, attention_mask=mask)
    stop = int(free[0, tokens.shape[1] + 6])  # a token that the model writes by itself
    found = generate(ours, tokens, NEW, temperature=0, stop=stop, pad=1, attention_mask=mask)
    assert int((found == stop).sum()) >= 1
    same(found, theirs_writes(theirs, stop))
    beams = beam_generate(
        ours, tokens, NEW, stop=stop, pad=1, attention_mask=mask, beam_size=3, length_penalty=1.0, **PUBLISHED
    )
    same(beams, theirs_writes(theirs, stop, num_beams=3))


@torch.no_grad()
def test_a_cache_changes_nothing_at_any_split(models: tuple[Any, Any]) -> None:
    """Past every window three times over."""
    _, ours = models
    tokens = torch.randint(50, (2, 3 * WINDOW + 1), generator=torch.Generator().manual_seed(6))
    whole = ours(tokens)
    scale = whole.abs().max().item()
    for split in range(1, tokens.shape[1]):
        state = ours.initial_state()
        parts = [ours.decode(part, state) for part in tokens.split([split, tokens.shape[1] - split], dim=1)]
        assert (torch.cat(parts, dim=1) - whole).abs().max().item() <= 1e-12 * scale, split
    state = ours.initial_state()
    steps = torch.cat([ours.decode(token, state) for token in tokens.split(1, dim=1)], dim=1)
    assert (steps - whole).abs().max().item() <= 1e-12 * scale
