"""Loading takes little more memory than the model: weights are read one at a time, large ones in pieces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from tests.interop.memory import can_measure
from transformer.interop import to_huggingface
from transformer.models import build, gpt, llama

ROOT = Path(__file__).resolve().parents[2]
DEEP: dict[str, Any] = {
    "vocab_size": 8000,
    "d_model": 512,
    "n_heads": 8,
    "n_layers": 8,
    "d_ff": 1408,
    "max_seq_len": 64,
}
WIDE: dict[str, Any] = {**DEEP, "vocab_size": 55_000, "n_layers": 1}
"""Nearly all of whose weights are one matrix, the embedding."""


def in_shards(folder: Path) -> None:
    """A tied model in bfloat16, in three files."""
    whole = to_huggingface(build(llama(**WIDE, tie_embeddings=True)).bfloat16(), folder) / "model.safetensors"
    from safetensors.torch import load_file

    tensors = load_file(whole)
    whole.unlink()
    places = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(sorted(tensors))}
    for place in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == place}, folder / place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def in_gguf(path: Path) -> None:
    """Eight bits a number, drawn at random."""
    gguf = pytest.importorskip("gguf")
    kind, d, f = gguf.GGMLQuantizationType.Q8_0, WIDE["d_model"], WIDE["d_ff"]
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_block_count(1)
    writer.add_feed_forward_length(f)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {
        "token_embd": (WIDE["vocab_size"], d),
        "blk.0.ffn_gate": (f, d),
        "blk.0.ffn_up": (f, d),
        "blk.0.ffn_down": (d, f),
    }
    shapes |= {f"blk.0.attn_{name}": (d, d) for name in ("q", "k", "v", "output")}
    for name, (rows, columns) in shapes.items():
        blocks = random.integers(-127, 128, (rows, columns // 32, 34), np.int8).view(np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(rows, -1), raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(d, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(not can_measure(), reason="the system does not tell a process's peak")
def test_loading_takes_at_most_a_fifth_more_than_the_model(tmp_path: Path) -> None:
    small = {**DEEP, "vocab_size": 40, "n_layers": 1, "d_model": 64}
    to_huggingface(build(llama(**small)), tmp_path / "small")
    to_huggingface(build(llama(**DEEP)), tmp_path / "fp32")
    to_huggingface(build(gpt(**{**WIDE, "d_ff": 2048})), tmp_path / "gpt2")
    in_shards(tmp_path / "shards")
    in_gguf(tmp_path / "model.gguf")
    paths = [str(tmp_path / name) for name in ("small", "fp32", "gpt2", "shards", "model.gguf")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.interop.memory", *paths]
    said = subprocess.run(
        command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    lines = [line.split("\t") for line in said.splitlines()]
    assert [Path(path).name for path, _, _ in lines] == ["fp32", "gpt2", "shards", "model.gguf"]
    for path, size, ratio in lines:
        assert int(size) >= 100_000_000, path
        assert 0.9 <= float(ratio) <= 1.2, f"{Path(path).name}: {ratio} of the model"
