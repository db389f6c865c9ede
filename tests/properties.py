"""What must hold of every model, as checks to call with any config: the catalog's rows, and parts made in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.catalog import VOCAB, make
from transformer.base import AuxiliaryLosses
from transformer.base.sockets import Execution, Kernel
from transformer.base.transformer import EncoderDecoder
from transformer.enhancements import naive_attention
from transformer.models import DecoderOnly, DecoderOnlyConfig, Model, ModelConfig

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def tokens(*shape: int, seed: int = 3) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to rounding; the tolerance is for numbers about 1, and without norms logits reach hundreds."""
    size = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[expected.dtype] * size)


def run(model: Model, x: Tensor, **options: Any) -> Tensor:
    """Logits for `x`; an encoder-decoder reads a source that is the same for every row."""
    if isinstance(model, DecoderOnly):
        return model(x, **options)
    return model(tokens(1, 6, seed=11).expand(len(x), -1), x, **options)


# ---------------------------------------------------------------- who reaches whom


@contextmanager
def leaf_embeddings(model: Model) -> Iterator[list[Tensor]]:
    """Make every output of the embedding a leaf, to differentiate by, and collect them in order of the calls."""
    leaves: list[Tensor] = []

    def cut(module: Any, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.embedding.register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()


def reached(output: Tensor, leaf: Tensor) -> Tensor:
    """Entry (t, s): whether the gradient of output t by input s is anything but exactly zero.

    Row t of the batch is asked about output t, so one backward pass gives the whole matrix.
    """
    index = torch.arange(output.shape[1])
    picked = output[index, index]
    (gradient,) = torch.autograd.grad((picked * torch.randn_like(picked)).sum(), leaf, retain_graph=True)
    return gradient.abs().sum(-1) != 0


@dataclass(frozen=True)
class Arrangement:
    """How the tokens of one row stand: some are padding, or they belong to several documents."""

    real: Tensor | None = None
    documents: Tensor | None = None

    def options(self, batch: int) -> dict[str, Tensor]:
        given = {"attention_mask": self.real, "documents": self.documents}
        return {name: x.expand(batch, -1) for name, x in given.items() if x is not None}

    def allowed(self, length: int) -> Tensor:
        """Who may reach whom in a causal model: real tokens of the same document, not later ones."""
        seen = torch.ones(length, length).tril().bool()
        if self.real is not None:
            seen = seen & self.real[None, :]
        if self.documents is not None:
            seen = seen & (self.documents[:, None] == self.documents[None, :])
        return seen


LENGTH = 8
ARRANGEMENTS = {
    "plain": Arrangement(),
    "left": Arrangement(torch.arange(LENGTH) >= 3),
    "right": Arrangement(torch.arange(LENGTH) < 6),
    "packed": Arrangement(documents=torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])),
}


def check_causality(
    config: DecoderOnlyConfig, kernel: Kernel, train: bool, arrangement: Arrangement, sparse: bool = False
) -> None:
    """No output depends on what it may not see, to the last bit, and each depends on all it may see (or `sparse`)."""
    model = make(config, Execution(kernel)).train(train)
    rows = tokens(1, LENGTH).expand(LENGTH, -1)
    with leaf_embeddings(model) as leaves:
        logits = model(rows, **arrangement.options(LENGTH))
    asked = slice(None) if arrangement.real is None else arrangement.real
    found, allowed = reached(logits, leaves[0])[asked], arrangement.allowed(LENGTH)[asked]
    assert not (found & ~allowed).any()
    assert found[:, asked].any(dim=1).all() if sparse else torch.equal(found, allowed)


def check_prefixes(config: ModelConfig, kernel: Kernel, train: bool, exact: bool = True) -> None:
    """Under any other continuation the outputs so far are the same bits, dropout included; or (not `exact`) numbers."""
    model = make(config, Execution(kernel)).train(train)
    for seed in range(3):
        first, second = tokens(2, LENGTH, seed=seed), tokens(2, LENGTH, seed=seed + 50)
        kept = 1 + 2 * seed
        second[:, :kept] = first[:, :kept]
        outputs = []
        for x in (first, second):
            torch.default_generator.manual_seed(5)
            outputs.append(run(model, x))
        before, after = (output[:, :kept] for output in outputs)
        assert torch.equal(before, after) if exact else close(before, after) is None
        assert not torch.equal(outputs[0][:, kept:], outputs[1][:, kept:])


# ---------------------------------------------------------------- decoding


def begin(model: Model, batch: int) -> Callable[[], tuple[Any, Callable[..., Tensor]]]:
    """What makes an initial state and gives the model's `decode`; a source is encoded once, for all."""
    if isinstance(model, EncoderDecoder):
        memory = model.encode(tokens(1, 6, seed=11).expand(batch, -1))
        return lambda: (model.initial_state(memory), model.decode)
    return lambda: (model.initial_state(), model.decode)


CHUNKS = ((1,) * 10, (2, 1, 4, 3), (10,), (2,) * 5, (3, 3, 3, 1), *((n, 10 - n) for n in range(1, 10)))
"""Ways to split ten tokens: one by one, unevenly, not at all, evenly, and after a prompt of any length."""


@torch.no_grad()
def check_stepwise(
    config: ModelConfig,
    kernel: Kernel,
    dtype: torch.dtype = torch.float64,
    splits: Sequence[tuple[int, ...]] = CHUNKS,
) -> None:
    """Token by token, in chunks, or after a prompt: always the logits of the whole sequence."""
    model = make(config, Execution(kernel), dtype)
    x = tokens(3, 10)
    whole, start = run(model, x), begin(model, len(x))
    for sizes in splits:
        state, decode = start()
        close(torch.cat([decode(chunk, state) for chunk in x.split(sizes, dim=1)], dim=1), whole)


@torch.no_grad()
def check_ragged_prompts(config: DecoderOnlyConfig, kernel: Kernel) -> None:
    """Prompts of unlike lengths, padded on either side with anything, continue as each would alone."""
    model = make(config, Execution(kernel))
    x, lengths = tokens(3, 10), (6, 2, 4)
    for left in (False, True):
        prompt, real = tokens(3, 6, seed=8), torch.zeros(3, 6, dtype=torch.bool)
        for row, n in enumerate(lengths):
            place = slice(6 - n, 6) if left else slice(0, n)
            prompt[row, place], real[row, place] = x[row, :n], True
        state = model.initial_state()
        got = model.decode(prompt, state, real)
        after = [torch.stack([x[row, n + i] for row, n in enumerate(lengths)])[:, None] for i in range(3)]
        steps = torch.cat([model.decode(step, state) for step in after], dim=1)
        for row, n in enumerate(lengths):
            alone = model(x[row : row + 1, : n + 3])[0]
            close(torch.cat([got[row][real[row]], steps[row]]), alone)


@torch.no_grad()
def check_reordering(config: ModelConfig, kernel: Kernel) -> None:
    """Rows may be repeated, dropped and reordered between steps, as beam search does, from one row up."""
    model = make(config, Execution(kernel))
    for batch, picks in ((3, ([2, 0, 0, 1], [3, 1])), (1, ([0, 0, 0], [1, 2, 0, 0]))):
        history = tokens(batch, 4)
        state, decode = begin(model, batch)()
        decode(history, state)
        for i, pick in enumerate(picks):
            index = torch.tensor(pick)
            state.select(index)
            step = tokens(len(pick), 2, seed=20 + i)
            history = torch.cat([history[index], step], dim=1)
            close(decode(step, state), run(model, history)[:, -2:])


# ---------------------------------------------------------------- padding, batches, packing


@torch.no_grad()
def check_padding(config: ModelConfig, kernel: Kernel) -> None:
    """0 … 9 tokens of padding on the left and 9 … 0 on the right, of any value, change no logit of a real token."""
    model = make(config, Execution(kernel))
    x, y = tokens(10, 7), tokens(10, 5, seed=4)
    long, real = tokens(10, 16, seed=5), torch.zeros(10, 16, dtype=torch.bool)
    for left in range(10):
        long[left, left : left + 7], real[left, left : left + 7] = x[left], True
    if isinstance(model, EncoderDecoder):
        close(model(long, y, real.long()), model(x, y))
    else:
        close(model(long, real)[real].unflatten(0, (10, 7)), model(x))


def check_blank_row(config: ModelConfig, kernel: Kernel) -> None:
    """A row that is all padding gives finite logits and gradients, and leaves the other rows alone."""
    model = make(config, Execution(kernel))
    x, y = tokens(2, 7), tokens(2, 5, seed=4)
    real = torch.tensor([[True] * 7, [False] * 7])
    if isinstance(model, EncoderDecoder):
        logits, alone = model(x, y, real), model(x[:1], y[:1])
    else:
        logits, alone = model(x, real), model(x[:1])
    close(logits[:1], alone)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def check_batches(config: ModelConfig, kernel: Kernel) -> None:
    """A row's logits do not depend on the rows beside it or on its place among them."""
    model = make(config, Execution(kernel), torch.float64)
    x = tokens(8, 7)
    whole = run(model, x)
    for size in (1, 3, 8):
        close(run(model, x[:size]), whole[:size])
    order = torch.randperm(8)
    close(run(model, x[order]), whole[order])


@torch.no_grad()
def check_packing(config: DecoderOnlyConfig, kernel: Kernel) -> None:
    """Documents packed into one row give what each gives alone."""
    model = make(config, Execution(kernel))
    lengths = (4, 1, 6, 2)
    x = tokens(2, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(2, -1)
    packed = model(x, documents=documents)
    for part, alone in zip(packed.split(lengths, dim=1), x.split(lengths, dim=1), strict=True):
        close(part, model(alone))


# ---------------------------------------------------------------- execution


def value_and_gradients(model: Model, x: Tensor, weight: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of predicting `x` with everything the parts add to it, and the gradient of each parameter."""
    torch.default_generator.manual_seed(9)
    auxiliary = AuxiliaryLosses()
    logits = run(model, x[:, :-1], auxiliary=auxiliary)
    loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()) + auxiliary.total()
    (loss * weight).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def check_checkpointing(config: ModelConfig, kernel: Kernel = naive_attention) -> None:
    """Recomputing activations changes no bit of the loss or of any gradient, dropout included."""
    plain = Execution(kernel)
    results = []
    for execution in (plain, replace(plain, checkpoint=True)):
        model = make(config, execution).train()
        results.append(value_and_gradients(model, tokens(3, 8)))
    (loss, gradients), (again, others) = results
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def check_gradients(config: ModelConfig, kernel: Kernel = naive_attention, tolerance: float = 1e-6) -> None:
    """Autograd agrees with finite differences in every parameter."""
    compare_gradients(make(config, Execution(kernel)), tolerance)


def compare_gradients(model: Model, tolerance: float = 1e-6, h: float = 1e-6) -> None:
    """(f(θ + h u) - f(θ - h u)) / 2h = Σ_p ⟨∂f/∂p, u_p⟩ for three random u, f a random sum of the logits.

    A direction moves all parameters at once, since one for each tensor would take most of the time of all tests. The
    shares of large gradients are made smaller, so that none hides an error in another.
    """
    x, parameters = tokens(2, 5), tuple(model.parameters())
    weights = torch.randn(2, 5, VOCAB, dtype=torch.float64)

    def f() -> Tensor:
        return (run(model, x) * weights).sum()

    gradients = torch.autograd.grad(f(), parameters, materialize_grads=True)
    for _ in range(3):
        shares = [
            torch.randn_like(p) / gradient.norm().clamp(min=1)
            for p, gradient in zip(parameters, gradients, strict=True)
        ]
        expected = torch.stack([(u * gradient).sum() for u, gradient in zip(shares, gradients, strict=True)])
        found = []
        with torch.no_grad():
            for move in (h, -2 * h, h):
                for p, u in zip(parameters, shares, strict=True):
                    p.add_(u, alpha=move)
                found.append(f())
        error = ((found[0] - found[1]) / (2 * h) - expected.sum()).abs()
        assert error < tolerance * expected.norm(), f"{error:.3g} of {expected.norm():.3g}"
