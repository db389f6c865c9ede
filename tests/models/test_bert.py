"""BERT against its equations, its published size, and what must hold of a model that reads both ways."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from transformer.base import LayerNorm
from transformer.base.sockets import Execution
from transformer.enhancements import enhance, naive_attention, pre_norm, rms_norm, rope, sdpa_attention
from transformer.enhancements.initialization import TruncatedNormalConfig
from transformer.interop import to_huggingface
from transformer.models import (
    BERT,
    KINDS,
    EncoderOnly,
    EncoderOnlyConfig,
    NoHeadConfig,
    NoPoolerConfig,
    bert,
    build,
)
from transformer.models.heads import SequenceClassifier, SequenceRegressor, TokenClassifier
from transformer.models.pooler import mean_pool
from transformer.utils.codec import decode, encode

Array = npt.NDArray[np.float64]
SMALL: dict[str, Any] = {"vocab_size": 31, "d_model": 48, "n_heads": 12, "n_layers": 2, "max_seq_len": 80}
LENGTH = 70


def weights(model: nn.Module) -> None:
    """Weights away from 0 and 1, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.2)


def model(dtype: torch.dtype = torch.float64, **options: Any) -> EncoderOnly:
    torch.manual_seed(0)
    made = BERT(**{**SMALL, **options}).to(dtype).eval()
    weights(made)
    return made


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(31, (3, LENGTH), generator=generator)
    segments = torch.randint(2, (3, LENGTH), generator=generator)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[1, 41:], mask[2, :13] = False, False
    return tokens, segments, mask


# ---------------------------------------------------------------- the equations, in NumPy


def norm(x: Array, w: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def by_hand(w: dict[str, Array], tokens: list[int], segments: list[int]) -> tuple[Array, Array, Array]:
    """Hidden states, logits and pooled vector of one sequence without padding."""
    x = w["embedding.weight"][tokens] + w["embedding.segments.weight"][segments]
    x = norm(x + w["stack.position.table.weight"][: len(tokens)], w, "stack.input_norm")
    for layer in range(2):
        block = f"stack.blocks.{layer}"
        q, k, v = (dense(x, w, f"{block}.mixer.branch.{name}_proj").reshape(len(x), 12, 4) for name in "qkv")
        scores = np.einsum("the,she->hts", q, k) / 2
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hts,she->the", p / p.sum(-1, keepdims=True), v).reshape(len(x), 48)
        x = norm(x + dense(mixed, w, f"{block}.mixer.branch.out_proj"), w, f"{block}.mixer.norm")
        inner = gelu(dense(x, w, f"{block}.feed_forward.branch.up_proj"))
        x = norm(
            x + dense(inner, w, f"{block}.feed_forward.branch.down_proj"), w, f"{block}.feed_forward.norm"
        )
    logits = dense(norm(gelu(dense(x, w, "lm_head.dense")), w, "lm_head.norm"), w, "lm_head")
    return x, logits, np.tanh(dense(x[0], w, "pooler.dense"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_it_is_its_equations_on_ragged_rows(dtype: torch.dtype, tolerance: float) -> None:
    made, (tokens, segments, mask) = model(dtype), inputs()
    w = {name: tensor.double().numpy() for name, tensor in made.state_dict().items()}
    with torch.no_grad():
        hidden, logits = made.encode(tokens, segments, mask), made(tokens, segments, mask)
        pooled = made.pooler(hidden, mask)
    for row in range(3):
        real = mask[row]
        expected = by_hand(w, tokens[row][real].tolist(), segments[row][real].tolist())
        for got, wanted in zip((hidden[row][real], logits[row][real], pooled[row]), expected, strict=True):
            np.testing.assert_allclose(
                got.double().numpy(), wanted, rtol=0, atol=tolerance * max(1, abs(wanted).max())
            )


def test_the_gradient_is_that_of_the_equations() -> None:
    """Central differences of the NumPy definition, in random directions of all weights at once."""
    made, (tokens, segments, _) = model(), inputs()
    rows = tokens[0].tolist(), segments[0].tolist()
    slope = torch.randn(LENGTH, 31, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / LENGTH
    (made(tokens[:1], segments[:1])[0] * slope).sum().backward()
    w = {name: tensor.detach().numpy() for name, tensor in made.state_dict().items()}
    gradients = {name: p.grad.numpy() for name, p in made.named_parameters() if p.grad is not None}
    assert gradients.keys() == dict(made.named_parameters()).keys() - {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    for seed in range(3):
        dice, step = np.random.default_rng(seed), 1e-6
        direction = {name: dice.standard_normal(x.shape) for name, x in gradients.items()}
        ends = []
        for sign in (1, -1):
            moved = {name: w[name] + sign * step * direction[name] for name in direction}
            moved |= {
                "pooler.dense.weight": w["pooler.dense.weight"],
                "pooler.dense.bias": w["pooler.dense.bias"],
            }
            moved["lm_head.weight"] = moved["embedding.weight"]
            ends.append((by_hand(moved, *rows)[1] * slope.numpy()).sum())
        expected = sum((gradients[name] * direction[name]).sum() for name in direction)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-6, abs=1e-6)


# ---------------------------------------------------------------- size, weights, switches


def test_bert_has_its_published_size() -> None:
    with torch.device("meta"):
        base, large = BERT(), BERT(30522, 1024, 16, 24)
    for made, expected in ((base, 109_482_240), (large, 335_141_888)):
        parts = (made.embedding, made.stack, made.pooler)
        assert sum(p.numel() for part in parts for p in part.parameters()) == expected
    assert base(*(torch.zeros(2, 9, dtype=torch.long, device="meta"),) * 2).shape == (2, 9, 30522)
    assert {m.epsilon for m in base.modules() if isinstance(m, LayerNorm)} == {1e-12}


def test_first_weights_are_cut_off_at_two_standard_deviations() -> None:
    torch.manual_seed(0)
    made = BERT(2000, 96, 4, 1)
    for name, parameter in made.named_parameters():
        if parameter.dim() == 2 and parameter.numel() > 5000:
            assert parameter.abs().max() <= 0.04 and 0.0172 < parameter.std() < 0.0180, name  # 0.02 · 0.8796
        elif name.endswith("bias"):
            assert not parameter.any(), name
    assert made.config.initialization == TruncatedNormalConfig(0.02)


def test_switches_are_enhancements() -> None:
    switched = BERT(
        **SMALL, use_rope=True, use_rms_norm=True, use_pre_norm=True, use_gradient_checkpointing=True
    )
    assert switched.config == enhance(bert(**SMALL), pre_norm(), rms_norm(), rope())
    assert switched.execution.checkpoint
    with pytest.raises(
        ValueError, match=r"^this kind of attention reads from left to right, and an encoder reads"
    ):
        BERT(**SMALL, use_retention=True)
    with pytest.raises(TypeError, match=r"did you mean 'use_rope'\?$"):
        BERT(**SMALL, use_rop=True)


def test_a_config_is_yaml_and_a_model() -> None:
    config = bert(**SMALL)
    for one in (
        config,
        enhance(config, rope()),
        EncoderOnlyConfig(9, 48, config.stack, tie_embeddings=False, lm_head=NoHeadConfig()),
    ):
        assert decode(EncoderOnlyConfig, encode(one), kinds=KINDS) == one
        assert build(one).config == one
    with pytest.raises(
        ValueError, match=r"^a model with no_head has no matrix to tie; set tie_embeddings to false$"
    ):
        EncoderOnlyConfig(9, 48, config.stack, lm_head=NoHeadConfig())


# ---------------------------------------------------------------- what must hold


def test_every_token_sees_both_sides_and_no_padding() -> None:
    made, (tokens, segments, mask) = model(), inputs()
    x = made.embedding(tokens, segments).detach().requires_grad_()
    made._embed = lambda *_: x  # type: ignore[method-assign]
    made.encode(tokens, segments, mask)[1, 7].sum().backward()
    assert x.grad is not None
    touched = x.grad[1].abs().sum(-1) > 0
    assert torch.equal(touched, mask[1]) and not x.grad[0].any() and not x.grad[2].any()


def test_packed_documents_are_documents_alone() -> None:
    made, (tokens, segments, _) = model(), inputs()
    documents = (torch.arange(LENGTH) >= 26).long()[None]
    whole = made(tokens[:1], segments[:1], documents=documents)
    parts = [made(tokens[:1, part], segments[:1, part]) for part in (slice(0, 26), slice(26, None))]
    torch.testing.assert_close(whole, torch.cat(parts, 1), rtol=0, atol=1e-11)


def test_kernels_and_checkpointing_change_nothing() -> None:
    tokens, segments, mask = inputs()
    results = []
    for execution in (
        Execution(naive_attention),
        Execution(sdpa_attention),
        Execution(naive_attention, True),
    ):
        made = EncoderOnly(bert(**SMALL), execution).double().eval()
        made.load_state_dict(model().state_dict())
        out = made(tokens, segments, mask)
        out[mask].square().sum().backward()
        gradient = made.embedding.weight.grad
        assert gradient is not None
        results.append((out[mask], gradient))
    for out, gradient in results[1:]:
        torch.testing.assert_close(out, results[0][0], rtol=0, atol=1e-9)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-8, atol=1e-8)


def test_what_a_model_has_not_is_refused() -> None:
    tokens, segments, _ = inputs()
    plain = build(
        EncoderOnlyConfig(31, 48, bert(**SMALL).stack, tie_embeddings=False, lm_head=NoHeadConfig())
    )
    assert isinstance(plain, EncoderOnly) and isinstance(plain.config.pooler, NoPoolerConfig)
    with pytest.raises(
        ValueError, match=r"^this model has no map to logits; call encode\(\.\.\.\) for its hidden"
    ):
        plain(tokens)
    with pytest.raises(
        ValueError, match=r"^this model has no pooler; use models.pooler.mean_pool, or build it with"
    ):
        plain.pooler(plain.encode(tokens))
    with pytest.raises(ValueError, match=r"^the input has 81 tokens, more than max_seq_len 80"):
        plain(torch.zeros(1, 81, dtype=torch.long))
    from dataclasses import replace

    from transformer.base.embedding import EmbeddingConfig

    single = build(replace(bert(**SMALL), embedding=EmbeddingConfig(scaled=False)))
    with pytest.raises(ValueError, match=r"^this model knows no segments; leave them out$"):
        single(tokens, segments)


# ---------------------------------------------------------------- vectors of sequences, heads for tasks


def test_poolers_pass_over_padding() -> None:
    made, (tokens, segments, mask) = model(), inputs()
    with torch.no_grad():
        hidden = made.encode(tokens, segments, mask)
        for row in range(3):
            alone = made.encode(tokens[row, mask[row]][None], segments[row, mask[row]][None])
            torch.testing.assert_close(
                made.pooler(hidden, mask)[row], made.pooler(alone)[0], rtol=0, atol=1e-11
            )
            torch.testing.assert_close(
                mean_pool(hidden, mask.long())[row], alone[0].mean(0), rtol=0, atol=1e-11
            )
    torch.testing.assert_close(mean_pool(hidden), hidden.mean(1))
    assert not mean_pool(hidden, torch.zeros_like(mask)).any()


def test_heads_score_what_they_say() -> None:
    made, arguments = model(), inputs()
    torch.manual_seed(0)
    sequence, number, token = (SequenceClassifier(made, 4), SequenceRegressor(made), TokenClassifier(made, 3))
    for head in (sequence, number, token):
        head.double().eval()
    hidden = made.encode(*arguments)
    pooled = made.pooler(hidden, arguments[2])
    assert torch.equal(sequence(*arguments), sequence.score(pooled)) and sequence(*arguments).shape == (3, 4)
    assert torch.equal(number(*arguments), number.classifier.score(pooled)[:, 0])
    assert torch.equal(token(*arguments), token.score(hidden)) and token(*arguments).shape == (3, LENGTH, 3)
    sequence.train()
    assert not torch.equal(sequence(*arguments), sequence(*arguments))
    with pytest.raises(ValueError, match=r"^n_classes must be at least 1, got 0$"):
        TokenClassifier(made, 0)


def test_a_mean_pooler_is_the_map_of_the_mean_and_is_not_written_as_bert(tmp_path: Path) -> None:
    """tanh(W mean(h) + b) over the real tokens in NumPy; its gradient is checked by finite differences."""
    config = bert(50, 24, 12, 1, max_seq_len=70, dropout=0.0, pooling="mean")
    model = build(replace(config, lm_head=NoHeadConfig(), tie_embeddings=False)).double().eval()
    hidden = torch.randn(2, 64, 24, dtype=torch.float64, requires_grad=True)
    real = torch.ones(2, 64, dtype=torch.bool)
    real[0, :20] = False
    pooled = model.pooler(hidden, real)
    weight, bias = (p.detach().numpy() for p in (model.pooler.dense.weight, model.pooler.dense.bias))
    for row, first in enumerate((20, 0)):
        mean = hidden.detach().numpy()[row, first:].mean(0)
        np.testing.assert_allclose(pooled[row].detach().numpy(), np.tanh(weight @ mean + bias), atol=1e-12)
    assert torch.autograd.gradcheck(lambda h: model.pooler(h, real), (hidden,), fast_mode=True)
    with pytest.raises(ValueError, match="its pooler takes the mean of all tokens"):
        to_huggingface(model, tmp_path / "bert", model_type="bert")
