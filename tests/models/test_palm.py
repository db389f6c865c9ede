"""PaLM against a definition in NumPy, forward and backward, and at its published sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from transformer.models import DecoderOnly, build, palm
from transformer.run.config import decode_run

Array = NDArray[np.float64]
VOCAB, WIDTH, HEADS, WIDE, LENGTH = 23, 18, 3, 10, 70


def size(config: Any) -> int:
    """The entries of all matrices."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters() if p.dim() == 2)


def test_the_published_models_have_their_published_sizes() -> None:
    """Table 1 of the paper: 8.63 and 540.35 billion; the gains of the norms would make it 540.36."""
    models = palm(), palm(256000, 18432, 48, 118, d_head=256)
    assert [round(size(config) / 1e9, 2) for config in models] == [8.63, 540.35]


def normalized(x: Array, gain: Array) -> Array:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * gain


def turned(x: Array) -> Array:
    """Each token's vector, its first half and its second the two coordinates of pairs, turned by its position."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(half) / half)
    real, imaginary = np.cos(angles), np.sin(angles)
    a, b = x[:, :half], x[:, half:]
    return np.concatenate([a * real - b * imaginary, a * imaginary + b * real], axis=-1)


def attention(x: Array, w: dict[str, Array], block: str) -> Array:
    """Heads of queries to one head of keys and values."""
    keys = turned(x @ w[f"{block}.mixer.k_proj.weight"].T)
    values = x @ w[f"{block}.mixer.v_proj.weight"].T
    found = []
    for matrix in np.split(w[f"{block}.mixer.q_proj.weight"], HEADS):
        scores = turned(x @ matrix.T) @ keys.T / np.sqrt(WIDE)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        found.append(weights / weights.sum(-1, keepdims=True) @ values)
    return np.concatenate(found, axis=-1) @ w[f"{block}.mixer.out_proj.weight"].T


def network(x: Array, w: dict[str, Array], block: str) -> Array:
    """SwiGLU."""
    gate, up, down = (w[f"{block}.feed_forward.{name}_proj.weight"] for name in ("gate", "up", "down"))
    inner = x @ gate.T
    return (inner / (1 + np.exp(-inner)) * (x @ up.T)) @ down.T


def definition(w: dict[str, Array], tokens: list[int]) -> Array:
    """The logits after each token of one text."""
    x = w["embedding.weight"][tokens]
    for layer in range(2):
        block = f"stack.blocks.{layer}.mixer"
        y = normalized(x, w[f"{block}.norm.weight"])
        x = x + attention(y, w, f"{block}.branch") + network(y, w, f"{block}.branch")
    return normalized(x, w["stack.norm.weight"]) @ w["embedding.weight"].T / np.sqrt(WIDTH)


@pytest.fixture
def model() -> DecoderOnly:
    """With no weight that is 0 or 1."""
    torch.manual_seed(0)
    made = DecoderOnly(palm(VOCAB, WIDTH, HEADS, 2, d_head=WIDE, d_ff=25)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.fixture
def text() -> tuple[Tensor, Tensor]:
    """Tokens and which are real: one row whole, one padded on the left, one on the right."""
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[1, :19], mask[2, 64:] = False, False
    return torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1)), mask


def weights_of(model: DecoderOnly) -> dict[str, Array]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def expected(w: dict[str, Array], text: tuple[Tensor, Tensor]) -> Array:
    """The logits of the real tokens, each row by itself and without its padding."""
    return np.concatenate([definition(w, row[real].tolist()) for row, real in zip(*text, strict=True)])


def test_the_logits_are_those_of_the_definition(model: DecoderOnly, text: tuple[Tensor, Tensor]) -> None:
    found = model(*text)[text[1]].detach().numpy()
    assert abs(found - expected(weights_of(model), text)).max() <= 1e-12
    single = model.float()(*text)[text[1]].detach().numpy()
    assert abs(single - found).max() <= 2e-5


def test_the_gradient_is_that_of_the_definition(model: DecoderOnly, text: tuple[Tensor, Tensor]) -> None:
    """By every weight, in a random direction."""
    random, w, h = np.random.default_rng(0), weights_of(model), 1e-5
    slope = random.normal(size=(int(text[1].sum()), VOCAB)) / LENGTH
    (model(*text)[text[1]] * torch.from_numpy(slope)).sum().backward()
    for name, parameter in model.named_parameters():
        direction = random.normal(size=w[name].shape)
        ahead, behind = (expected({**w, name: w[name] + step * direction}, text) for step in (h, -h))
        difference = ((ahead - behind) * slope).sum() / (2 * h)
        assert parameter.grad is not None
        found = (parameter.grad.numpy() * direction).sum()
        assert abs(found - difference) <= 1e-7 * max(1, abs(difference)), name


@torch.no_grad()
def test_step_by_step_is_the_whole(model: DecoderOnly, text: tuple[Tensor, Tensor]) -> None:
    tokens, mask = text
    whole, state, found, start = model(tokens, mask), model.initial_state(), [], 0
    for length in (60, 1, 1, 7, 1):
        part = slice(start, start + length)
        found.append(model.decode(tokens[:, part], state, mask[:, part]))
        start += length
    assert (torch.cat(found, 1) - whole)[mask].abs().max() <= 1e-12


def test_first_weights_are_those_of_the_paper() -> None:
    """N(0, 1) for embeddings, N(0, 1/n) for maps of n inputs; the first logits are then of the size of one."""
    torch.manual_seed(0)
    model = DecoderOnly(palm(500, 64, 4, 1))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = 1.0 if name == "embedding.weight" else parameter.shape[1] ** -0.5
            assert 0.9 < parameter.std().item() / std < 1.1, name
    assert 0.5 < model(torch.randint(500, (2, 9))).std().item() < 2


def test_a_run_may_name_the_family() -> None:
    section = {"family": "palm", "d_model": 32, "n_heads": 4, "n_layers": 2, "use_qk_norm": True}
    rest = {"data": {"kind": "text", "path": "nowhere"}, "schedule": {"kind": "constant"}}
    architecture, _ = decode_run({"model": section, **rest}, {}).model.architecture(20)
    plain: Any = palm(20, 32, 4, 2)
    assert architecture.vocab_size == 20 and architecture != plain
    assert architecture.lm_head == plain.lm_head
