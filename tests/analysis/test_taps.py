"""Taps show what the model computed, and leave no trace of themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from transformer import GPT, Transformer
from transformer.analysis import trace
from transformer.base import Execution, scaled_dot_product_attention
from transformer.enhancements import sdpa_attention
from transformer.models import Model

DIMS = {"vocab_size": 61, "d_model": 24, "n_heads": 3, "n_layers": 2}
KERNELS = {"reference": scaled_dot_product_attention, "fused": sdpa_attention}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))


def pair(kernel: object = scaled_dot_product_attention) -> tuple[Model, tuple[Tensor, Tensor, Tensor]]:
    model = Transformer(**DIMS)  # type: ignore[arg-type]
    model.execution = Execution(kernel)  # type: ignore[arg-type]
    real = torch.arange(37) < torch.tensor([37, 20, 1])[:, None]
    return model, (torch.randint(61, (3, 37)), torch.randint(61, (3, 30)), real)


def fingerprint(model: Model) -> list[object]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return [model.execution, [m.training for m in model.modules()], hooks]


@each_kernel
def test_every_output_is_the_one_of_a_call_without_taps(kernel: object) -> None:
    model, inputs = pair(kernel)
    before = fingerprint(model)
    seen = trace(model, *inputs)
    assert fingerprint(model) == before and model.training
    with torch.no_grad():
        logits = model.eval()(*inputs)
    assert torch.equal(seen["lm_head"], logits)
    assert torch.equal(seen["embedding"], model.embedding(inputs[0]))
    assert torch.equal(seen["embedding#2"], model.embedding(inputs[1]))
    assert not any(tensor.requires_grad for tensor in seen.values())
    assert next(iter(seen)) == "embedding" and list(seen)[-1] == "lm_head"  # the order of the call


@each_kernel
def test_weights_are_those_of_the_equation_in_float64(kernel: object) -> None:
    model, (source, target, real) = pair(kernel)
    model.double()
    seen = trace(model, source, target, real)
    for path, rows, columns, mask in (
        ("encoder.blocks.1.mixer", 37, 37, real[:, None, None, :].numpy()),
        ("decoder.blocks.1.mixer", 30, 30, np.tri(30, dtype=bool)),
        ("decoder.blocks.0.cross_attention", 30, 37, real[:, None, None, :].numpy()),
    ):
        q, k = (
            seen[f"{path}.branch.{name}_proj"].numpy().reshape(3, -1, 3, 8).transpose(0, 2, 1, 3)
            for name in "qk"
        )
        scores = np.where(mask, q @ k.transpose(0, 1, 3, 2) / math.sqrt(8), -np.inf)
        expected = np.exp(scores - scores.max(-1, keepdims=True))
        expected /= expected.sum(-1, keepdims=True)
        weights = seen[f"{path}.branch.weights"].numpy()
        assert weights.shape == (3, 3, rows, columns)
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-14)
        assert (weights[np.broadcast_to(~mask, weights.shape)] == 0).all()
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 50])  # around the width of a head, in which weights are read
def test_weights_of_any_length_sum_to_one_under_rope(length: int) -> None:
    model = GPT(**DIMS, max_seq_len=64, use_rope=True, use_flash_attention=True)  # type: ignore[arg-type]
    seen = trace(model, torch.randint(61, (2, length)), taps="*.weights")
    assert list(seen) == [f"stack.blocks.{n}.mixer.branch.weights" for n in range(2)]
    for weights in seen.values():
        assert weights.shape == (2, 3, length, length)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, length))
        assert (weights.triu(1) == 0).all()


@each_kernel
def test_a_query_that_sees_nothing_has_no_weights(kernel: object) -> None:
    model, (source, target, real) = pair(kernel)
    real[1] = False
    seen = trace(model, source, target, real, taps=("encoder.*.weights", "*.cross_attention.*.weights"))
    assert len(seen) == 4
    for weights in seen.values():
        assert (weights[1] == 0).all()
        torch.testing.assert_close(weights[[0, 2]].sum(-1), torch.ones_like(weights[[0, 2], ..., 0]))


def test_only_what_is_asked_for_is_kept() -> None:
    model, inputs = pair()
    seen = trace(model, *inputs, taps=("encoder.blocks.?", "lm_head"))
    assert list(seen) == ["encoder.blocks.0", "encoder.blocks.1", "lm_head"]


def test_what_is_kept_does_not_change_later() -> None:
    model, inputs = pair()
    seen = trace(model, *inputs, taps="encoder.blocks.0")["encoder.blocks.0"]
    outputs: list[Tensor] = []

    def spoil(_: object, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].zero_()

    model.eval().encoder.blocks[0].register_forward_hook(lambda *call: outputs.append(call[-1]))  # type: ignore[union-attr,index]
    model.encoder.blocks[1].register_forward_pre_hook(spoil)  # type: ignore[union-attr,index]
    with torch.no_grad():
        model(*inputs)
    assert (outputs[0] == 0).all() and seen.abs().sum() > 0
    assert torch.equal(trace(model, *inputs, taps="encoder.blocks.0")["encoder.blocks.0"], seen)


@pytest.mark.parametrize("fails", ["kernel", "module"])
def test_everything_is_restored_after_an_error(fails: str) -> None:
    model, inputs = pair()

    def broken(*_: object) -> Tensor:
        raise RuntimeError("on purpose")

    if fails == "kernel":
        model.execution = Execution(broken)
    else:
        model.lm_head.register_forward_pre_hook(broken)
    before = fingerprint(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        trace(model, *inputs)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("decoder.block.0", r"^no tap matches 'decoder.block.0'; the nearest is 'decoder.blocks.0'$"),
        (("lm_head", "*.wights"), r"^no tap matches '\*.wights'; the nearest is '.*weights'$"),
        ("zzz", r"^no tap matches 'zzz'; the nearest is '.+'$"),
    ],
)
def test_an_unknown_address_is_refused_with_the_nearest(taps: str | tuple[str, ...], message: str) -> None:
    model, inputs = pair()
    with pytest.raises(ValueError, match=message):
        trace(model, *inputs, taps=taps)


def test_a_compiled_model_is_read_through() -> None:
    model, inputs = pair()
    compiled = torch.compile(model, backend="eager")
    assert trace(compiled, *inputs).keys() == trace(model, *inputs).keys()
