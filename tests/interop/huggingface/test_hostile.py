"""Directories that are wrong or mean harm are refused in one line, and nothing in them is executed or followed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BloomConfig, GPTNeoConfig

from tests.interop.memory import can_measure, peak_during
from transformer import load
from transformer.interop import to_huggingface
from transformer.models import build, gpt, llama

pytestmark = pytest.mark.shapes_unchecked

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
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700, str(caught.value)


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
        ({"num_attention_heads": 0}, r"cannot be built|must be"),
        ({"rms_norm_eps": float("nan")}, r"describes a model that cannot be built: .*epsilon"),
    ],
)
def test_attributes_that_cannot_be_used(folder: Path, changes: dict[str, Any], message: str) -> None:
    attributes(folder, **changes)
    refused(folder, message)


BIG = 10**9
BOUNDED = [
    ("llama", {"vocab_size": 10**15}, r"has vocab_size 1000000000000000, but its weights are only [\d,]+ bytes$"),
    ("llama", {"num_hidden_layers": BIG}, r"has num_hidden_layers 1000000000, but its weights are only 12 tensors$"),
    ("llama", {"hidden_size": BIG, "head_dim": 6}, r"has hidden_size 1000000000, but its weights are only"),
    ("llama", {"hidden_size": 4000, "head_dim": 6}, r"cannot be built: it would have [\d,]+ weights"),
    ("gpt2", {"n_layer": BIG}, r"has n_layer 1000000000, but its weights are only [\d,]+ tensors$"),
    ("gpt2", {"n_positions": BIG}, r"cannot be built: it would have 12,000,[\d,]+ weights"),
    ("gpt2", {"n_head": BIG, "n_embd": BIG}, r"has n_(head|embd) 1000000000, but"),
    ("gpt2", {"n_inner": 10**30}, r"has n_inner 10+, but its weights are only [\d,]+ bytes$"),
    ("gpt_neo", {"attention_types": [[["global"], BIG]]}, r"has attention_types 1000000000, but its weights are only"),
    ("bloom", {"n_head": BIG}, r"has n_head 1000000000, but its weights are only [\d,]+ bytes$"),
]  # fmt: skip


@pytest.fixture(scope="module")
def small_ones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each of some families."""
    place = tmp_path_factory.mktemp("families")
    gpt_like = {key: value for key, value in SMALL.items() if key != "max_seq_len"}
    models = {
        "llama": llama(**SMALL),
        "gpt2": gpt(**SMALL),
        "gpt_neo": gpt(**SMALL),
        "bloom": gpt(**gpt_like),
    }
    paths = {}
    for name in ("llama", "gpt2"):
        paths[name] = to_huggingface(build(models[name]), place / name)
    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 12}
    others = {
        "gpt_neo": GPTNeoConfig(
            **sizes, num_layers=1, num_heads=2, attention_types=[[["global"], 1]], max_position_embeddings=16
        ),
        "bloom": BloomConfig(**sizes, n_layer=1, n_head=2),
    }  # fmt: skip
    for name, config in others.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(place / name)
        paths[name] = place / name
    return paths


@pytest.mark.parametrize(("family", "changes", "message"), BOUNDED)
def test_sizes_that_the_weights_do_not_bear_out_cost_nothing(
    family: str, changes: dict[str, Any], message: str, small_ones: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(small_ones[family], tmp_path / "model")
    attributes(folder, **changes)
    start = time.process_time()
    peak, _ = peak_during(lambda: refused(folder, message)) if can_measure() else (0, None)
    refused(folder, message)
    assert peak < 64 * 2**20 and time.process_time() - start < 5


def test_any_value_in_any_attribute_is_refused_or_loaded(small_ones: dict[str, Path], tmp_path: Path) -> None:
    """Never worse, and never slowly: a traceback of any other kind fails this test."""
    values = [-1, 0, BIG, 10**30, float("nan"), "x", [BIG] * 3, {}, "a" * 10_000]

    def everything() -> None:
        for family in ("llama", "bloom"):
            folder = shutil.copytree(small_ones[family], tmp_path / family)
            plain = json.loads((folder / "config.json").read_text())
            for name in plain:
                for value in values:
                    (folder / "config.json").write_text(json.dumps({**plain, name: value}))
                    try:
                        load(folder)
                    except ValueError as error:
                        assert "\n" not in str(error) and len(str(error)) < 700, (name, value)

    peak, _ = peak_during(everything) if can_measure() else (0, everything())
    assert peak < 64 * 2**20


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


def test_links_of_a_downloaded_snapshot_are_followed(folder: Path) -> None:
    """As in the cache of the hub: each file of the snapshot is a link to one of the blobs."""
    snapshot, blobs = folder.parent / "snapshots" / "1", folder.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        os.symlink(blobs / str(number), snapshot / path.name)
    assert not load(snapshot).training
    (snapshot / "config.json").unlink()
    os.symlink("/etc/hostname", snapshot / "config.json")
    refused(snapshot, r"config.json is a link that leads out of its folder$")


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


def with_header(folder: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(*shape: int, start: int = 0, end: int = 0, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


MANY = json.dumps({f"t{number}": entry(0) for number in range(60_000)}).encode()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{", b""),
        (json.dumps({"a": entry(1, end=4), "b": entry(1, end=4)}).replace("b", "a").encode(), b"0000"),  # twice
        ({"a": entry(2, end=8), "b": entry(2, start=4, end=12)}, b"0" * 12),  # overlap
        ({"a": entry(1, end=4), "b": entry(1, start=8, end=12)}, b"0" * 12),  # hole
        ({"a": entry(1, end=4)}, b"0" * 8),  # bytes of nobody
        ({"a": entry(BIG, BIG, end=4)}, b"0000"),
        ({"a": entry(1, end=2**62)}, b"0000"),
        ({"a": entry(-1, end=4)}, b"0000"),
        ({"a": entry(1, end=4, dtype="OBJECT")}, b"0000"),
        (MANY, b""),  # many tensors of nothing
    ],
)  # fmt: skip
def test_headers_that_are_wrong(folder: Path, header: Any, data: bytes) -> None:
    with_header(folder, header, data)
    refused(folder, r".")


def test_time_grows_with_the_names_of_a_header_not_with_their_square(folder: Path) -> None:
    seconds = []
    for count in (6_000, 60_000):
        with_header(folder, {f"t{number}": entry(0) for number in range(count)})
        start = time.process_time()
        refused(folder, r".")
        seconds.append(time.process_time() - start)
    assert seconds[1] < 30 * seconds[0]


def test_bytes_at_random_are_refused_or_loaded_never_worse(folder: Path) -> None:
    """Most of the changes fall into the header, where they can do most."""
    path, random = folder / "model.safetensors", Random(0)
    whole = path.read_bytes()

    def everything() -> None:
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(random.choice((1, 2, 8))):
                data[random.randrange(min(len(data), random.choice((9, 1400, len(data)))))] = (
                    random.randrange(256)
                )
            path.write_bytes(data if random.random() < 0.9 else data[: random.randrange(len(data))])
            try:
                load(folder)
            except ValueError as error:
                assert "\n" not in str(error)

    peak, _ = peak_during(everything) if can_measure() else (0, everything())
    assert peak < 64 * 2**20


def test_a_directory_of_pickles_alone_is_told_what_is_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"model.safetensors cannot be read: .*; a model needs its weights as safetensors$")


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
