"""Directories that are wrong or mean harm are refused in one line, and nothing in them is executed or followed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from transformer import load
from transformer.interop import to_huggingface
from transformer.models import build, llama

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "d_model": 12,
    "n_heads": 2,
    "n_layers": 1,
    "d_ff": 8,
    "max_seq_len": 16,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return to_huggingface(build(llama(**SMALL)), tmp_path / "model")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def attributes(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    found = load_file(path)
    change(found)
    save_file(found, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, r"has hidden_act 'gelu', and only 'silu' can be loaded$"),
        ({"model_type": "lama"}, r"has model_type 'lama', which is not known; did you mean 'llama'\?$"),
        ({"surprise": 1}, r"has the attribute 'surprise', which is not known for a model of type 'llama'"),
        ({"hidden_size": "12"}, r"has hidden_size '12', which is not of type int$"),
        ({"hidden_size": None}, r"has no hidden_size$"),
        ({"num_attention_heads": 5, "head_dim": None}, r"describes a model that cannot be built: .*5"),
        ({"rope_scaling": {"rope_type": "odd"}, "rope_parameters": None}, r"has rope_type 'odd', and only"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            r"has both rope_scaling and rope_parameters",
        ),
        ({"hidden_size": 14, "head_dim": 6}, r"the tensor '.*' has shape .*, which does not fit"),
        ({"num_hidden_layers": 2}, r"has no tensor 'model.layers.1"),
        ({"vocab_size": 10**15}, r"cannot be built"),
    ],
)
def test_attributes_that_cannot_be_used(folder: Path, changes: dict[str, Any], message: str) -> None:
    attributes(folder, **changes)
    refused(folder, message)


@pytest.mark.parametrize(
    "name",
    ["../weights.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b.safetensors", "x\0.safetensors",
     "C:weights.safetensors", "weights.bin", "nowhere.safetensors"],
)  # fmt: skip
def test_an_index_cannot_lead_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "weights.safetensors")
    (folder / "weights.bin").write_bytes(b"")
    index(folder, {"model.norm.weight": name})
    refused(folder, r"names the file|cannot be read")


def test_a_link_cannot_lead_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "weights.safetensors")
    os.symlink(folder.parent / "weights.safetensors", folder / "model.safetensors")
    refused(folder, r"is a link that leads out of its folder$")


def test_an_index_must_agree_with_its_shards(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    save_file(whole, folder / "a.safetensors")
    save_file(whole, folder / "b.safetensors")
    index(folder, {**dict.fromkeys(whole, "a.safetensors"), "model.norm.weight": "b.safetensors"})
    refused(folder, r"is in a.safetensors and in b.safetensors$")
    index(folder, {**dict.fromkeys(whole, "a.safetensors"), "model.extra": "a.safetensors"})
    refused(folder, r"the tensor 'model.extra' is not in a.safetensors$")
    for wrong in (None, {}, [], {"a": 1}):
        index(folder, wrong)
        refused(folder, r"has no weight_map from tensors to files$")


def test_tensors_that_do_not_belong(folder: Path) -> None:
    tensors(folder, lambda found: found.update(extra=torch.zeros(2)))
    refused(folder, r"has the tensor '(model\.)?extra', which its config.json has no use for$")


def test_tensors_that_are_missing_or_not_finite(folder: Path) -> None:
    tensors(folder, lambda found: found["model.norm.weight"].fill_(torch.nan))
    refused(folder, r"the tensor 'model.norm.weight' has values that are not finite$")
    tensors(folder, lambda found: found.pop("model.norm.weight"))
    refused(folder, r"has no tensor 'model.norm.weight'$")


def test_a_pickle_in_disguise_is_not_opened(folder: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload()))
    refused(folder, r"is not a safetensors file")
    (folder / "config.json").write_bytes(pickle.dumps(Payload()))
    refused(folder, r"config.json")
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, r"config.json")
    assert not (tmp_path / "executed").exists()


def test_what_no_family_can_express_is_not_written(tmp_path: Path) -> None:
    from transformer import GPT

    with pytest.raises(
        ValueError,
        match=r"^no published family has this architecture \(gpt2: its positions are not learned; .*",
    ):
        to_huggingface(GPT(20, 12, 2, 1, use_alibi=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()
