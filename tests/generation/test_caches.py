"""Growing, preallocated, in a ring: however keys and values are kept, the logits are those of the whole sequences."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.catalog import ROWS, VOCAB, make
from tests.generation.families import WINDOW, pair
from transformer.base import Transformer
from transformer.base.cache import PreallocatedCache, RingCache, Storage
from transformer.base.sockets import MixerConfig
from transformer.enhancements import CATALOG
from transformer.enhancements.attention.sliding_window import sliding_window
from transformer.models import DecoderOnlyConfig, build, gpt

pytestmark = pytest.mark.shapes_unchecked

MIXERS: dict[str, DecoderOnlyConfig] = {
    f"{row.kind} {i}": model
    for row in ROWS
    if issubclass(CATALOG[row.kind], MixerConfig)
    for i, model in enumerate(row.models)
    if isinstance(model, DecoderOnlyConfig)
}


class Conversation:
    """A state, and beside it what each row has read: every logit is held against the whole row's."""

    def __init__(self, model: Any, rows: int, storage: Storage) -> None:
        self.model, self.state = model, model.initial_state(storage)
        self.rows: list[list[int]] = [[] for _ in range(rows)]
        self.limit = model.stack.position.max_seq_len or 60

    def read(self, tokens: Tensor, real: Tensor | None = None) -> None:
        logits = self.model.decode(tokens, self.state, real)
        mask = torch.ones_like(tokens).bool() if real is None else real
        for row, seen, keep, got in zip(self.rows, tokens, mask, logits, strict=True):
            row.extend(seen[keep].tolist())
            expected = self.model(torch.tensor([row]))[0, len(row) - int(keep.sum()) :]
            torch.testing.assert_close(got[keep], expected, rtol=0, atol=1e-11)

    def select(self, index: list[int]) -> None:
        self.state.select(torch.tensor(index))
        self.rows = [list(self.rows[i]) for i in index]

    def truncate(self, ends: list[int]) -> None:
        self.state.truncate(torch.tensor(ends)[:, None])
        self.rows = [row[:end] for row, end in zip(self.rows, ends, strict=True)]


def play(model: Any, storage: Storage, vocab_size: int, seed: int) -> None:
    """Ragged prompts, chunks, single tokens, beams and steps back, in an order of dice."""
    dice, torch_dice = random.Random(seed), torch.Generator().manual_seed(seed)

    def draw(rows: int, length: int) -> Tensor:
        return torch.randint(vocab_size, (rows, length), generator=torch_dice)

    talk, real = Conversation(model, 3, storage), torch.zeros(3, 6, dtype=torch.bool)
    for row, (first, last) in enumerate(((0, 6), (3, 6), (1, 5))):
        real[row, first:last] = True
    talk.read(draw(3, 6), real)
    while max(map(len, talk.rows)) < min(talk.limit, 3 * WINDOW + 8) - 5:
        rows = len(talk.rows)
        what = dice.choice(["one", "one", "one", "few", "ragged", "select", "back"])
        if what == "select":
            talk.select([dice.randrange(rows) for _ in range(dice.choice([rows, 2, 4]))])
        elif what == "back" and storage.rollback:
            for _ in range(3):  # what is taken back leaves no hole
                talk.read(draw(rows, 4))
                talk.truncate([len(row) - dice.choice([1, 3, 4, 4]) for row in talk.rows])
        elif what == "ragged":
            some = torch.rand(rows, 3, generator=torch_dice) < 0.6
            talk.read(draw(rows, 3), some | (torch.arange(3) == 1))
        else:
            talk.read(draw(rows, 1 if what == "one" else 3))


def can_go_back(model: Any) -> bool:
    try:
        model.initial_state(Storage(rollback=1))
    except ValueError as error:
        assert "cannot take back what it has read, so this model cannot be used with rollback 1" in str(error)
        return False
    return True


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_every_mixer_is_indifferent_to_how_its_state_is_kept(name: str) -> None:
    model = make(MIXERS[name]).double().eval()
    rollback = 4 if can_go_back(model) else 0
    for capacity in (None, 60):
        play(model, Storage(capacity, rollback), VOCAB, seed=len(name))


@pytest.mark.parametrize("name", ["mistral", "gpt_neo", "gemma3"])
def test_published_windows_wrap_around_a_ring(name: str, tmp_path: Path) -> None:
    for _, model in pair(name, tmp_path):
        with torch.no_grad():
            assert RingCache in {type(kept) for kept in leaves(model.initial_state(Storage(60)))}
            play(model, Storage(60, rollback=4), 50, 0)


def leaves(state: Any) -> list[Any]:
    return [kept for block in state.blocks for kept in block.sublayers.values() if kept is not None]


@torch.no_grad()
def test_an_encoder_decoder_too() -> None:
    model = Transformer(17, d_model=12, n_heads=3, n_layers=2, max_seq_len=40).double().eval()
    source, target = torch.randint(17, (2, 5)), torch.randint(17, (2, 9))
    state = model.initial_state(model.encode(source), Storage(capacity=9, rollback=2))
    assert PreallocatedCache in {type(kept) for kept in leaves(state.stack)}
    parts = [model.decode(part, state) for part in target.split([4, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(source, target), rtol=0, atol=1e-12)
    state.truncate(torch.tensor([[7], [8]]))
    again = model.decode(target[:, 7:8], state)[0, 0]
    torch.testing.assert_close(again, model(source, target)[0, 7], rtol=0, atol=1e-12)


def small() -> Any:
    return build(sliding_window(4)(gpt(19, d_model=8, n_heads=2, n_layers=1, max_seq_len=64))).eval()


@torch.no_grad()
def test_memory_is_taken_once() -> None:
    """Neither a ring nor a preallocated cache moves or grows while tokens come one at a time."""
    windowed, plain = small(), build(gpt(19, d_model=8, n_heads=2, n_layers=1, max_seq_len=64)).eval()
    for model, width in ((windowed, [4] * 20), (plain, list(range(1, 21)))):
        state = model.initial_state(Storage(capacity=20))
        places, widths = set(), []
        for _ in range(20):
            model.decode(torch.tensor([[3]]), state)
            (cache,) = leaves(state)
            places.add(cache.keys.data_ptr())
            widths.append(cache.keys.shape[2])
        assert len(places) == 1 and widths == width
    growing = windowed.initial_state()
    for _ in range(20):
        windowed.decode(torch.tensor([[3]]), growing)
    assert leaves(growing)[0].keys.shape[2] == 3  # the three that the next token will see


def test_what_a_storage_cannot_do_is_refused() -> None:
    model, tokens = small(), torch.tensor([[3, 4, 5, 6]])
    with pytest.raises(ValueError, match=r"^capacity must be at least 1 token, got 0; null grows by itself$"):
        Storage(0)
    with pytest.raises(ValueError, match=r"^rollback must be 0 or more tokens, got -1$"):
        Storage(rollback=-1)
    with pytest.raises(ValueError, match=r"^a preallocated cache has no gradients.* or let the cache grow$"):
        model.decode(tokens, model.initial_state(Storage(9)))
    plain = build(gpt(19, d_model=8, n_heads=2, n_layers=1, max_seq_len=64)).eval()
    with torch.no_grad():
        state = plain.initial_state(Storage(3))
        with pytest.raises(
            ValueError, match=r"^the cache was made for 3 tokens and is to hold 4; ask .* 4 or more$"
        ):
            plain.decode(tokens, state)
        state = model.initial_state(Storage(rollback=1))
        model.decode(tokens, state)
        with pytest.raises(
            ValueError, match=r"^2 tokens are to be taken back, .* a Storage with rollback 2 or more$"
        ):
            state.truncate(torch.tensor([[2]]))
    growing = model.initial_state()
    model.decode(tokens, growing)[0, -1].sum().backward()  # a growing cache passes gradients on
    assert model.embedding.weight.grad is not None
