"""What the paper says beside its equations: scales, ties, where dropout falls, first weights, sizes, and refusals."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import references
from transformer.base import (
    AuxiliaryLosses,
    Layout,
    LearnedPosition,
    PostNorm,
    SinusoidalPosition,
    TokenEmbedding,
    Transformer,
)
from transformer.base.stack import Stack
from transformer.base.wiring import Dropout

SMALL = {"vocab_size": 19, "d_model": 24, "n_heads": 4, "n_layers": 2}


@pytest.mark.parametrize("d_model", [16, 17, 512])
def test_sinusoids_are_the_formula_entry_by_entry(d_model: int) -> None:
    position = SinusoidalPosition(d_model, 130)
    layout = Layout.of(torch.zeros(1, 130, dtype=torch.long))
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-7)):
        added = position.to(dtype).embed(torch.zeros(1, 130, d_model, dtype=dtype), layout)[0]
        assert np.abs(added.double().numpy() - references.sinusoids(130, d_model)).max() <= tolerance


def test_sinusoids_of_a_shift_are_a_rotation() -> None:
    """§3.5: PE(pos + k) is a linear function of PE(pos)."""
    table = torch.from_numpy(references.sinusoids(100, 32)).unflatten(1, (16, 2))
    far, near, k = table[10:], table[:-10], table[10]
    turned = torch.stack(
        [near[..., 0] * k[:, 1] + near[..., 1] * k[:, 0], near[..., 1] * k[:, 1] - near[..., 0] * k[:, 0]],
        dim=-1,
    )
    torch.testing.assert_close(turned, far, rtol=0, atol=1e-12)


def test_positions_are_taken_from_the_layout() -> None:
    for position in (SinusoidalPosition(8, 20).double(), LearnedPosition(8, 20).double()):
        layout = Layout.of(
            torch.zeros(2, 6).long(), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
        )
        added = position.embed(torch.zeros(2, 6, 8, dtype=torch.float64), layout)
        assert torch.equal(added[0, 2:], added[1, :4])


def test_embeddings_are_scaled_by_the_root_of_the_width() -> None:
    model, tokens = Transformer(**SMALL), torch.tensor([[3, 1, 4]])
    assert torch.equal(model.embedding(tokens), model.embedding.weight[tokens] * math.sqrt(24))
    table = TokenEmbedding(1000, 512, math.sqrt(512))
    Transformer(vocab_size=1000, n_layers=1).config.initialization.initialize(table)
    assert (
        abs(table(torch.arange(1000)[None]).std().item() - 1) < 0.01
    )  # like the sinusoids, whose mean square is 1/2


def storage(model: Transformer) -> set[int]:
    return {model.embedding.weight.data_ptr(), model.lm_head.weight.data_ptr()}


def test_one_matrix_embeds_source_and_target_and_makes_the_logits(tmp_path: Path) -> None:
    model = Transformer(**SMALL)
    loaded = Transformer(**SMALL)
    loaded.load_state_dict(model.state_dict())
    assigned = Transformer(**SMALL)
    assigned.load_state_dict({name: x.clone() for name, x in model.state_dict().items()})
    for tied in (model, loaded, assigned, copy.deepcopy(model), model.double(), model.bfloat16()):
        assert len(storage(tied)) == 1
        assert tied.lm_head.weight is tied.embedding.weight
        assert sum(p.shape == (19, 24) for p in tied.parameters()) == 1
    model = Transformer(**SMALL)
    hidden: list[torch.Tensor] = []
    model.decoder.register_forward_hook(lambda module, args, out: hidden.append(out))
    logits = model(torch.tensor([[1, 2]]), torch.tensor([[3]]))
    assert torch.equal(logits, hidden[0] @ model.embedding.weight.T)
    logits.sum().backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None and (gradient.abs().sum(1) > 0).all()  # through the logits: every row


# ---------------------------------------------------------------- dropout


def test_dropout_falls_on_embeddings_and_branches_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(**SMALL, dropout=0.3)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in model.named_modules():
        assert not isinstance(module, nn.Dropout)
        module.register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0], out)}) if args else None
        )
    real = F.dropout
    monkeypatch.setattr(
        F,
        "dropout",
        lambda x, p=0.5, training=True: real(x, 0.0) if p == 0 else pytest.fail("dropout in attention"),
    )
    model.train()(torch.randint(19, (2, 7)), torch.randint(19, (2, 5)))

    active = {n for n, m in model.named_modules() if isinstance(m, Dropout) and m.p > 0}
    sublayers = {f"{n}.dropout" for n, m in model.named_modules() if isinstance(m, PostNorm)}
    assert active == sublayers | {"encoder.dropout", "decoder.dropout"}
    assert len(active) == 2 + 2 * (2 + 3)
    for name in sublayers:
        wiring = name.removesuffix(".dropout")
        dropped, kept = seen[name]
        assert torch.equal(dropped, seen[f"{wiring}.branch"][1])
        assert torch.equal(seen[f"{wiring}.norm"][0], seen[wiring][0] + kept)
        assert not torch.equal(dropped, kept)
    tokens = model.embedding.weight[torch.zeros(1, 1).long()]
    assert tokens.shape == (1, 1, 24)
    dropped, kept = seen["decoder.dropout"]
    positions = torch.from_numpy(references.sinusoids(5, 24)).float()
    torch.testing.assert_close(dropped, seen["embedding"][1] + positions)  # the decoder embeds last
    assert torch.equal(seen["decoder.blocks.0"][0], kept)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_that_share_and_keeps_the_mean(p: float) -> None:
    dropout, x = Dropout(p), torch.full((1000, 501), 2.0, dtype=torch.float64, requires_grad=True)
    y = dropout(x)
    kept = y != 0
    assert abs(1 - kept.double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / x.numel())
    assert y.detach().unique().tolist() == pytest.approx([0, 2 / (1 - p)], rel=1e-3)
    y.sum().backward()
    assert torch.equal(x.grad * 2, y)
    assert dropout.eval()(x) is x
    rows = dropout.train()(torch.ones(64, 64)) != 0
    assert len(rows.unique(dim=0)) == 64  # no row, and no column, is dropped like another
    assert len(rows.unique(dim=1).T) == 64


def test_dropout_of_almost_everything_is_finite() -> None:
    assert Dropout(0.9999999)(torch.ones(10000)).isfinite().all()


def test_no_dropout_in_eval_mode_and_some_in_training() -> None:
    model, source, target = Transformer(**SMALL), torch.randint(19, (2, 7)), torch.randint(19, (2, 5))
    assert torch.equal(model.eval()(source, target), model(source, target))
    assert not torch.equal(model.train()(source, target), model(source, target))


# ---------------------------------------------------------------- first weights and sizes


def test_first_weights_are_xavier_uniform_with_zero_biases() -> None:
    model = Transformer(vocab_size=3000, n_layers=1)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.999 * bound < module.weight.abs().max() <= bound
            assert abs(module.weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.01
            assert module.bias is None or not module.bias.any()
    assert abs(model.embedding.weight.std().item() * math.sqrt(512) - 1) < 0.01


@pytest.mark.parametrize(
    ("sizes", "d", "f", "published"),
    [({}, 512, 2048, 65e6), ({"d_model": 1024, "n_heads": 16, "dropout": 0.3}, 1024, 4096, 213e6)],
    ids=["base", "big"],
)
def test_the_published_models_have_their_size(sizes: dict, d: int, f: int, published: float) -> None:
    """Table 3 of the paper, with its vocabulary of about 37000; a projection has no bias, a feed-forward map has."""
    with torch.device("meta"):
        model = Transformer(vocab_size=37000, **sizes)
    feed_forward, norm = 2 * d * f + f + d, 2 * d
    encoder, decoder = 4 * d * d + feed_forward + 2 * norm, 8 * d * d + feed_forward + 3 * norm
    expected = 37000 * d + 6 * (encoder + decoder)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert expected == {512: 63_045_632, 1024: 214_171_648}[d]
    assert abs(expected / published - 1) < 0.035


# ---------------------------------------------------------------- refusals, and no state


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^d_model 100 cannot be split into n_heads 8 equal heads; the nearest n_heads that divides it is 10$",
    ):
        Transformer(vocab_size=9, d_model=100, n_heads=8)


def test_a_sequence_beyond_the_table_is_refused() -> None:
    model, long, short = (
        Transformer(**SMALL, max_seq_len=6),
        torch.zeros(1, 7).long(),
        torch.zeros(1, 6).long(),
    )
    assert model(short, short).shape == (1, 6, 19)
    message = (
        r"^the {} has 7 tokens, more than max_seq_len 6; shorten it or build the model with max_seq_len=7 .*$"
    )
    with pytest.raises(ValueError, match=message.format("source")):
        model(long, short)
    with pytest.raises(ValueError, match=message.format("target")):
        model(short, long)
    state = model.initial_state(model.encode(short))
    model.decode(short, state)
    with pytest.raises(ValueError, match=message.format("target")):
        model.decode(short[:, :1], state)


def test_no_auxiliary_loss_is_zero() -> None:
    auxiliary = AuxiliaryLosses()
    Transformer(**SMALL)(torch.zeros(1, 3).long(), torch.zeros(1, 2).long(), auxiliary=auxiliary)
    assert auxiliary.total().shape == () and auxiliary.total() == 0 and auxiliary.named() == {}


def test_decoding_leaves_nothing_on_the_model() -> None:
    model, tokens = Transformer(**SMALL).eval(), torch.randint(19, (1, 5))
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    state = model.initial_state(model.encode(tokens))
    first = model.decode(tokens, state)
    assert torch.equal(model.decode(tokens, model.initial_state(model.encode(tokens))), first)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert isinstance(model.decoder, Stack)
