"""Small published models with random weights, and how ours are compared with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.interop.huggingface.measured import record, record_saved
from transformer import load
from transformer.interop import to_huggingface

VOCAB, LENGTH = 50, 80


def shaken(model: Any, dtype: torch.dtype) -> Any:
    """The model with weights away from 0 and 1, so that none can be left out unnoticed."""
    torch.manual_seed(5)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if dtype == torch.float64:
        for module in model.modules():
            make_exact(module)
    return model


def make_exact(module: Any) -> None:
    """Make again, in double precision, what a module makes in single whatever the model's is."""
    rope = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    tables = {"inv_freq": rope} | {
        f"{kind}_inv_freq": one for kind, one in rope.items() if isinstance(one, dict)
    }
    for name, settings in tables.items():
        if hasattr(module, name) and settings.get("rope_type") == "default":
            pairs = torch.arange(len(getattr(module, name)), dtype=torch.float64)
            setattr(module, name, settings["rope_theta"] ** (-pairs / len(pairs)))
    if hasattr(module, "scalar_embed_scale"):
        module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)


@contextmanager
def all_double() -> Iterator[None]:
    """Inside, whoever asks for float32 gets float64: their norms, angles and softmax come down to single otherwise."""
    plain, softmax, cast = Tensor.to, torch.nn.functional.softmax, Tensor.type

    def wide(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    def to(self: Tensor, *args: Any, **options: Any) -> Tensor:
        return plain(self, *(wide(x) for x in args), **{name: wide(x) for name, x in options.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "to", to)
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(Tensor, "type", lambda self, *kind: cast(self, *(wide(x) for x in kind)))
        patch.setattr(
            torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim, dtype=wide(dtype))
        )
        yield


def published(config: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model of `transformers` with random weights, saved in the folder."""
    torch.manual_seed(3)
    model = shaken(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), dtype)
    model.save_pretrained(folder)
    return model


def ragged(rows: int = 3) -> tuple[Tensor, Tensor]:
    """Tokens, and a mask of them: one row whole, one padded on the left, one on the right."""
    tokens = torch.randint(VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(rows, LENGTH, dtype=torch.long)
    mask[1, :23], mask[2, 51:] = 0, 0
    return tokens, mask


def compare(theirs: nn.Module, ours: nn.Module, tolerance: float, sides: str = "both") -> None:
    """Compare the logits of real tokens, and the gradient by the embedding, which all layers pass back to."""
    tokens, mask = ragged()
    if sides != "both":  # a family that knows no padding on the left
        tokens, mask = tokens[[0, 2]], mask[[0, 2]]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=mask, position_ids=positions).logits
    got = ours(tokens, mask)
    real = mask.bool()
    scale = max(1.0, expected[real].abs().max().item())
    assert record(theirs, "logit", expected[real], got[real]) <= tolerance * scale
    slope = (
        torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(expected.dtype)
        * real[..., None]
    )
    slope = slope / LENGTH
    (expected * slope).sum().backward()
    (got * slope).sum().backward()
    first, second = theirs.get_input_embeddings().weight.grad, ours.embedding.weight.grad
    assert record(theirs, "gradient", first, second) <= tolerance * max(1.0, first.abs().max().item())


def sees_padding_on_the_left(theirs: Any, ours: Any) -> None:
    """Theirs reads what stands at padding to the left of a row; ours gives what both give without it."""
    compare(theirs, ours, 1e-5, sides="right")
    tokens, mask = ragged()
    with torch.no_grad():
        got = ours(tokens, mask)[1, 23:]
        assert (got - theirs(tokens, attention_mask=mask).logits[1, 23:]).abs().max() > 0.01
        assert (got - theirs(tokens[1:2, 23:]).logits[0]).abs().max() <= 1e-4


def round_trip(theirs: Any, ours: Any, folder: Path, **loading: Any) -> None:
    """What we save, `transformers` loads without a missing or unexpected key, and computes the same."""
    to_huggingface(ours, folder)
    again, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype="auto", **loading
    )
    assert not any(report.values()), report
    tokens, _ = ragged()
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens).logits, theirs(tokens).logits, rtol=1e-6, atol=1e-6)
    assert load(folder).config == ours.config
    record_saved(theirs)
