"""Generation with a state against the model run on whole sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from transformer.generation import Sampling, generate, stream
from transformer.models import GPT

pytestmark = pytest.mark.shapes_unchecked

VOCAB = 19


def small_gpt(seed: int = 0, max_seq_len: int = 40, **switches: Any) -> GPT:
    """In float64, with an output matrix of its own so that it does not just repeat its last token."""
    torch.manual_seed(seed)
    model = GPT(VOCAB, d_model=16, n_heads=2, n_layers=2, max_seq_len=max_seq_len, **switches).double().eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def prompts(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator) for n in lengths]


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    tokens, mask = torch.full((len(rows), width), 4), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(len(row))
        tokens[i, place], mask[i, place] = row, True
    return tokens, mask


def greedy_on_whole_sequences(model: GPT, prompt: Tensor, n: int) -> list[int]:
    tokens = prompt[None]
    with torch.no_grad():
        for _ in range(n):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens[0].tolist()


def test_greedy_equals_whole_sequences_at_every_split() -> None:
    model, n = small_gpt(), 24
    expected = greedy_on_whole_sequences(model, prompts([3])[0], n - 3)
    assert len(set(expected)) > 4
    for split in range(1, n + 1):
        found = generate(model, torch.tensor([expected[:split]]), n - split, temperature=0)
        assert split < 3 or found.tolist() == [expected]
        assert found.shape == (1, n)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("as_int", [False, True])
def test_prompts_may_be_padded_on_either_side(side: str, as_int: bool) -> None:
    model, rows = small_gpt(1), prompts([5, 1, 8, 3])
    tokens, mask = padded(rows, side)
    found = generate(model, tokens, 9, temperature=0, attention_mask=mask.long() if as_int else mask)
    assert torch.equal(found[:, :8], tokens)
    for row, new in zip(rows, found[:, 8:], strict=True):
        assert [*row.tolist(), *new.tolist()] == greedy_on_whole_sequences(model, row, 9)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_the_others(temperature: float) -> None:
    model, rows = small_gpt(2), prompts([4, 6, 2, 5])
    tokens, mask = padded(rows, "left")
    options = {"temperature": temperature, "seed": 3, "stop": [5, 6]}
    together = generate(model, tokens, 12, attention_mask=mask, **options)
    first = generate(model, rows[0][None], 12, **options)
    others = [rows[0], *prompts([3, 6, 1], seed=9)]
    changed, changed_mask = padded(others, "left")
    elsewhere = generate(model, changed, 12, attention_mask=changed_mask, **options)
    n = first.shape[1] - 4
    assert together[0, 6 : 6 + n].tolist() == elsewhere[0, 6 : 6 + n].tolist() == first[0, 4:].tolist()
    assert not torch.equal(together[1:, 6:], elsewhere[1:, 6 : together.shape[1]])


def test_rows_stop_by_themselves_and_are_padded() -> None:
    model, tokens = small_gpt(3), torch.stack(prompts([2] * 16))
    free = generate(model, tokens, 20, seed=1)
    stopped = generate(model, tokens, 20, seed=1, stop={5, 7}, pad=99)
    ends = []
    for row, cut in zip(free[:, 2:].tolist(), stopped[:, 2:].tolist(), strict=True):
        end = min([i + 1 for i, token in enumerate(row) if token in (5, 7)] + [20])
        assert cut == row[:end] + [99] * (len(cut) - end)
        ends.append(end)
    assert stopped.shape[1] - 2 == max(ends) > min(ends)
    first = free[0].tolist()
    single = generate(model, tokens[:1], 20, seed=1, stop=first[4])
    assert single.tolist() == [
        first[: first.index(first[4], 2) + 1]
    ]  # nothing is added once all rows have ended


def test_stopped_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = small_gpt(3), []
    decode = GPT.decode
    monkeypatch.setattr(GPT, "decode", lambda self, x, *rest: sizes.append(len(x)) or decode(self, x, *rest))
    found = generate(model, torch.stack(prompts([2] * 16)), 20, seed=1, stop={5, 7}, pad=99)
    assert sizes == [int((found[:, i] != 99).sum()) for i in range(2, found.shape[1])]


def test_the_same_seed_gives_the_same_tokens() -> None:
    model, tokens = small_gpt(), torch.stack(prompts([4, 4]))
    one, same, other = (generate(model, tokens, 15, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    twins = generate(model, tokens[:1].expand(2, -1), 15, seed=1)
    assert not torch.equal(twins[0], twins[1])  # samples of one prompt differ


def test_samples_follow_the_filters() -> None:
    model, tokens = small_gpt(4), torch.stack(prompts([3] * 64))
    best = model(tokens)[:, -1].topk(2, dim=1).indices
    drawn = generate(model, tokens, 1, temperature=3.0, top_k=2)[:, 3:]
    assert (drawn == best).any(1).all() and len(set((drawn == best)[:, 0].tolist())) == 2
    assert torch.equal(generate(model, tokens, 1, temperature=3.0, top_p=1e-9)[:, 3], best[:, 0])
    assert torch.equal(generate(model, tokens, 1, temperature=3.0, min_p=1.0)[:, 3], best[:, 0])


def test_the_stream_gives_the_same_tokens_one_at_a_time() -> None:
    model, tokens = small_gpt().train(), torch.stack(prompts([4, 4]))
    new = stream(model, tokens, 6, Sampling(seed=8))
    columns = []
    for column in new:
        assert model.training and torch.is_grad_enabled()  # between tokens all is as the caller left it
        columns.append(column)
    assert torch.equal(torch.stack(columns, 1), generate(model, tokens, 6, seed=8)[:, 4:])


def test_dropout_is_off() -> None:
    model = small_gpt(dropout=0.5)
    tokens = torch.stack(prompts([4]))
    assert torch.equal(
        generate(model, tokens, 9, temperature=0), generate(model.train(), tokens, 9, temperature=0)
    )


def test_nothing_more_was_asked_for() -> None:
    tokens = torch.stack(prompts([4, 4]))
    assert torch.equal(generate(small_gpt(), tokens, 0), tokens)


def test_what_cannot_be_continued_is_refused() -> None:
    model, tokens = small_gpt(max_seq_len=16), torch.stack(prompts([4, 4]))
    assert generate(model, tokens, 12).shape == (2, 16)
    for n, message in [
        (-1, "^max_new_tokens must be 0 or more, got -1$"),
        (
            13,
            r"^4 tokens and 13 new ones are more than max_seq_len 16; ask for at most 12 or shorten the prompt$",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            stream(model, tokens, n, Sampling())  # before the first token is asked for
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    with pytest.raises(
        ValueError, match="^prompt 1 has no token to continue; begin it with the start token$"
    ):
        generate(model, tokens, 3, attention_mask=mask)
    with pytest.raises(ValueError, match="^prompt 0 has no token"):
        generate(model, tokens[:, :0], 3)
    with pytest.raises(ValueError, match="^temperature must be 0"):
        generate(model, tokens, 3, temperature=-1.0)
