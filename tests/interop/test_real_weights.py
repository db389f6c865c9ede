"""Weights that others trained: their texts, their activations, their task."""

from __future__ import annotations

import base64
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transformer import load
from transformer.analysis.taps import trace
from transformer.enhancements.embedding import untied_embeddings
from transformer.generation import generate
from transformer.interop import load_llama2c, to_huggingface
from transformer.models import build, gpt

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
STORIES, SORT = CHECKPOINTS / "stories260K", CHECKPOINTS / "gpt_nano_sort"


# ---------------------------------------------------------------- stories260K, a LLaMA of llama2.c


def pieces() -> list[bytes]:
    """The vocabulary of `tok512.bin`: for each token a score, a length and as many bytes."""
    data, found, at = (STORIES / "tok512.bin").read_bytes(), [], 4
    while at < len(data):
        (length,) = struct.unpack_from("<i", data, at + 4)
        found.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def text(tokens: Tensor) -> str:
    table = pieces()
    parts = [table[token] for token in tokens.tolist() if token > 2]
    raw = [bytes([int(part[3:5], 16)]) if part[:3] == b"<0x" else part for part in parts]
    return b"".join(raw).decode().removeprefix(" ")


def test_the_story_is_the_published_one_to_the_letter(tmp_path: Path) -> None:
    model = load_llama2c(STORIES / "stories260K.bin")
    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032
    start = torch.tensor([[1]])
    tokens = generate(model, start, 256, temperature=0, stop=(1, 2))[0]
    expected = (STORIES / "expected_greedy.txt").read_text(encoding="utf-8")
    assert text(tokens) + "\n" == expected
    again = load(to_huggingface(model, tmp_path))  # through Hugging Face's format and back
    assert torch.equal(again(tokens[None]).argmax(-1)[0, :-1], tokens[1:])


def test_neighbouring_pairs_are_turned_as_halves() -> None:
    """The reordering of rows is no matter of taste: without it the story is another."""
    model = load_llama2c(STORIES / "stories260K.bin")
    raw = torch.from_numpy(np.fromfile(STORIES / "stories260K.bin", "<f4", offset=28))
    start = 512 * 64 + 5 * 64
    query = model.get_submodule("stack.blocks.0.mixer.branch.q_proj").weight
    stored = raw[start : start + 64 * 64].view(8, 4, 2, 64)
    assert torch.equal(query.view(8, 2, 4, 64), stored.transpose(1, 2))
    assert not torch.equal(query.flatten(), stored.flatten())


def header(*sizes: int) -> bytes:
    return struct.pack("<7i", *sizes)


SIZES = (8, 6, 1, 2, 1, 5, 4)
FLOATS = 5 * 8 + 8 + 64 + 32 + 32 + 64 + 8 + 48 * 3 + 8 + 2 * 4 * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not a model of llama2.c: it has 0 bytes"),
        (b"24ka" + bytes(300), r"is of a later version of llama2.c's format; export it as version 0$"),
        (header(8, 6, 0, 2, 1, 5, 4), r"its n_layers would be 0$"),
        (header(8, 6, 1, 2, 1, 0, 4), r"its vocab_size would be 0$"),
        (header(10, 6, 1, 4, 1, 5, 4), r"d_model 10 cannot be split into n_heads 4 heads"),
        (header(8, 6, 1, 2, 3, 5, 4), r"shared out to n_kv_heads 3$"),
        (header(*SIZES) + bytes(4 * FLOATS - 4), rf"has {4 * FLOATS + 24:,} bytes, but its header says"),
        (header(*SIZES) + bytes(4 * FLOATS + 4), r"but its header says"),
        (header(2**31 - 2, 2**31 - 1, 2**31 - 1, 1, 1, 2**31 - 1, 2**31 - 1), r"but its header says"),
        (header(*SIZES) + b"\xff" * (4 * FLOATS), r"the tensor 'embedding' has values that are not finite$"),
    ],
)
def test_files_that_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_llama2c(path)
    assert "\n" not in str(caught.value)


def test_a_map_to_logits_of_its_own(tmp_path: Path) -> None:
    path, rng = tmp_path / "model.bin", np.random.default_rng(0)
    floats = rng.normal(size=FLOATS + 5 * 8).astype("<f4")
    path.write_bytes(header(8, 6, 1, 2, 1, -5, 4) + floats.tobytes())
    model = load_llama2c(path)
    assert not model.config.tie_embeddings
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy().ravel(), floats[FLOATS:])
    with pytest.raises(ValueError, match=r"is missing$"):
        load_llama2c(tmp_path / "absent.bin")


# ---------------------------------------------------------------- gpt_nano_sort, a GPT-2 of minGPT


def arrays(name: str) -> dict[str, Tensor]:
    raw = json.loads((SORT / name).read_text())
    raw.pop("config", None)
    return {
        key: torch.from_numpy(
            np.frombuffer(base64.b64decode(value["data"]), "<f4").reshape(value["shape"]).copy()
        )
        for key, value in raw.items()
    }


@pytest.fixture(scope="module")
def sorter() -> Any:
    theirs = arrays("gpt-nano-sort-model.json")
    sizes: dict[str, Any] = {"vocab_size": 3, "d_model": 48, "n_heads": 3, "n_layers": 3, "max_seq_len": 11}
    model = build(untied_embeddings()(gpt(**sizes)))
    names = {"ln_1": "mixer.norm", "attn.c_proj": "mixer.branch.out_proj", "ln_2": "feed_forward.norm",
             "mlp.c_fc": "feed_forward.branch.up_proj", "mlp.c_proj": "feed_forward.branch.down_proj"}  # fmt: skip
    ours = {
        "embedding.weight": theirs["transformer.wte.weight"],
        "stack.position.table.weight": theirs["transformer.wpe.weight"],
        "lm_head.weight": theirs["lm_head.weight"],
    }
    for kind in ("weight", "bias"):
        ours[f"stack.norm.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
        for layer in range(3):
            path, target = f"transformer.h.{layer}", f"stack.blocks.{layer}"
            ours |= {
                f"{target}.{our}.{kind}": theirs[f"{path}.{their}.{kind}"] for their, our in names.items()
            }
            parts = theirs[f"{path}.attn.c_attn.{kind}"].split(48)
            for name, part in zip("qkv", parts, strict=True):
                ours[f"{target}.mixer.branch.{name}_proj.{kind}"] = part
    model.load_state_dict(ours)
    return model.eval()


def test_every_activation_is_the_published_one(sorter: Any) -> None:
    theirs = arrays("gpt-nano-sort-t0-partials.json")
    tokens = theirs["idx"].long()
    ours = trace(sorter, tokens)
    first = "stack.blocks.0"
    q, k, v = (ours[f"{first}.mixer.branch.{name}_proj"] for name in "qkv")
    found = {
        "tok_emb": ours["embedding"],
        "pos_emb": ours["stack.position.table"][:1],
        "x": ours["stack.dropout"],
        "ln1": ours[f"{first}.mixer.norm"],
        "qkv": torch.cat([q, k, v], dim=-1),
        **{name: x.view(3, 11, 3, 16).transpose(1, 2) for name, x in (("q", q), ("k", k), ("v", v))},
        "attSm": ours[f"{first}.mixer.branch.weights"],
        "yProj": ours[f"{first}.mixer.branch"],
        "attnResid": ours[f"{first}.mixer"],
        "ln2": ours[f"{first}.feed_forward.norm"],
        "fc": ours[f"{first}.feed_forward.branch.up_proj"],
        "mlp": ours[f"{first}.feed_forward.branch"],
        "mlpResid": ours[f"{first}.feed_forward"],
        **{f"block{layer}": ours[f"stack.blocks.{layer}"] for layer in range(3)},
        "ln_f": ours["stack.norm"],
        "lm_head": ours["lm_head"],
        "probs": ours["lm_head"].softmax(-1),
    }
    assert theirs.keys() - found.keys() == {"idx", "att", "y", "gelu"}  # have no module of their own
    for name, tensor in found.items():
        expected = theirs[name].view(tensor.shape) if theirs[name].numel() == tensor.numel() else theirs[name]
        torch.testing.assert_close(
            tensor, expected, rtol=0, atol=5e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_it_sorts_every_list_of_six_letters(sorter: Any) -> None:
    lists = torch.tensor(list(itertools.product(range(3), repeat=6)))
    sorted_lists = generate(sorter, lists, 5, temperature=0)  # 11 tokens are all it can number
    last = sorter(sorted_lists)[:, -1].argmax(-1, keepdim=True)
    assert torch.equal(torch.cat([sorted_lists[:, 6:], last], dim=1), lists.sort(dim=1).values)
