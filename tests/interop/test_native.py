"""A checkpoint becomes the model it was saved from, or is refused in one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import family_config
from transformer import GPT, Transformer, load
from transformer.base.transformer import transformer
from transformer.data import CharacterTokenizer
from transformer.enhancements import SWITCHES, apply_switches
from transformer.interop import MODEL_FILE, load_tokenizer_of, model_file
from transformer.models import FAMILIES, Model, build, gpt
from transformer.training.average import WeightAverage
from transformer.training.checkpoint import CheckpointStore

pytestmark = pytest.mark.shapes_unchecked

SMALL: dict[str, Any] = {"vocab_size": 31, "d_model": 12, "n_heads": 3, "n_layers": 2, "max_seq_len": 40}


def save(
    run: Path,
    model: Model,
    /,
    step: int = 1,
    *,
    score: float | None = None,
    files: Mapping[str, bytes] | None = None,
    **tensors: Mapping[str, Tensor],
) -> Path:
    """Save as a run does, but for what `files` and `tensors` say."""
    groups = {"model": model.state_dict(), **tensors}
    content = {MODEL_FILE: model_file(model)} if files is None else files
    return CheckpointStore(run, keep_last=9).save(step, tensors=groups, state={}, files=content, score=score)


def inputs(model: Model) -> tuple[Tensor, ...]:
    tokens = torch.randint(31, (2, 9))
    return (tokens, torch.randint(31, (2, 7))) if hasattr(model, "decoder") else (tokens,)


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700


# ---------------------------------------------------------------- what is loaded


EACH = [(family, None) for family in FAMILIES] + [("gpt", switch) for switch in SWITCHES]


@pytest.mark.parametrize(("family", "switch"), EACH)
def test_what_is_saved_is_loaded(family: str, switch: str | None, tmp_path: Path) -> None:
    config, execution = apply_switches(
        family_config(family, **{**SMALL, "d_model": 24}), {switch: True} if switch else {}
    )
    model = build(config, execution).eval()
    loaded = load(save(tmp_path, model))
    assert loaded.config == config and not loaded.training
    assert (loaded.lm_head.weight is loaded.embedding.weight) is config.tie_embeddings
    given = inputs(model)
    torch.testing.assert_close(loaded(*given), model(*given), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_exactly_the_saved_one(tied: bool, tmp_path: Path) -> None:
    model = build(replace(gpt(**SMALL), tie_embeddings=tied))
    loaded = load(save(tmp_path, model))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (loaded.lm_head.weight is loaded.embedding.weight) is tied


def test_the_architecture_is_saved_without_how_it_is_executed() -> None:
    plain, fused = GPT(**SMALL), GPT(**SMALL, use_flash_attention=True, use_gradient_checkpointing=True)
    assert model_file(plain) == model_file(fused)
    data = json.loads(model_file(plain))
    assert data["format"] == 1 and data["config"]["kind"] == "decoder_only"


@pytest.mark.parametrize("tied", [True, False])
def test_the_moving_average_is_taken_unless_refused(tied: bool, tmp_path: Path) -> None:
    model = build(replace(transformer(**SMALL), tie_embeddings=tied))
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    path = save(tmp_path, model, ema=average.tensors)
    loaded, last = load(path), load(path, ema=False)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, average.tensors[name]), name
    for name, parameter in last.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert loaded.lm_head.weight.equal(loaded.embedding.weight) is tied


def test_a_run_folder_means_its_best_checkpoint_else_its_newest(tmp_path: Path) -> None:
    models = [GPT(**SMALL) for _ in range(3)]
    for step, model in enumerate(models):
        save(tmp_path / "unscored", model, step)
        save(tmp_path / "scored", model, step, score=[2.0, 1.0, 3.0][step])
    assert torch.equal(load(tmp_path / "unscored").embedding.weight, models[2].embedding.weight)
    assert torch.equal(load(str(tmp_path / "scored")).embedding.weight, models[1].embedding.weight)


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = GPT(**SMALL), GPT(**SMALL)
    save(tmp_path, old, 1)
    weights = save(tmp_path, new, 2) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load(tmp_path).embedding.weight, old.embedding.weight)
    assert "passed over: " in caplog.text and "model.safetensors is damaged" in caplog.text


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    path = save(tmp_path, GPT(**SMALL))
    state = torch.get_rng_state()
    load(path)
    assert torch.equal(state, torch.get_rng_state())


def test_the_tokenizer_comes_with_the_checkpoint(tmp_path: Path) -> None:
    tokenizer, model = CharacterTokenizer("abc"), GPT(**SMALL)
    files = {MODEL_FILE: model_file(model), "tokenizer.json": tokenizer.to_bytes()}
    save(tmp_path, model, files=files)
    assert load_tokenizer_of(tmp_path).fingerprint == tokenizer.fingerprint
    save(tmp_path, model, 2)
    with pytest.raises(ValueError, match=r"step-00000002 has no 'tokenizer.json'; it has model.json"):
        load_tokenizer_of(tmp_path)


# ---------------------------------------------------------------- what is refused


def test_a_path_that_is_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "multi30k-base").mkdir(parents=True)
    runs = tmp_path / "runs"
    refused(runs / "multi30k_bas", r"multi30k_bas does not exist; did you mean 'multi30k-base'\?$")
    refused(tmp_path / "no" / "such", r"does not exist; give a run folder or one of its checkpoints$")
    refused(runs, r"is neither a run folder \(it has no checkpoints/\) nor a checkpoint \(it has no MANIFEST")
    (runs / "notes.txt").write_text("")
    refused(runs / "notes.txt", r"is a file; give the run folder")
    (runs / "checkpoints").mkdir()
    refused(runs, r"has no checkpoint yet; train until the first one is saved$")


def change(data: dict[str, Any], path: str, value: object) -> bytes:
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, r"model.json: format: must be 1, got 2"),
        ("extra", 1, r"model.json: extra: unknown key \(allowed: format, config\)"),
        (
            "config.kind",
            "decoder_onli",
            r"config.kind: unknown kind 'decoder_onli'; did you mean 'decoder_only'",
        ),
        ("config.kind", "layer_norm", r"config.kind: unknown kind 'layer_norm'"),
        ("config.d_modle", 8, r"config.d_modle: unknown key; did you mean 'd_model'\?"),
        ("config.d_model", "12", r"config.d_model: must be a valid integer, got '12'"),
        ("config.d_model", 13, r"13 cannot be split into n_heads 3 equal heads"),
        ("config.stack.blocks", [], r"config.stack.blocks: must "),
        ("config.stack", None, r"config.stack: must be a mapping"),
        (
            "config.vocab_size",
            32,
            r"the tensor 'embedding.weight' is float32 \[31, 12\], its model needs float32 \[32",
        ),
        ("config.tie_embeddings", "yes", r"config.tie_embeddings: must be a valid boolean, got 'yes'"),
    ],
)
def test_an_architecture_that_is_wrong_is_refused(
    path: str, value: object, message: str, tmp_path: Path
) -> None:
    model = GPT(**SMALL)
    data = change(json.loads(model_file(model)), path, value)
    refused(save(tmp_path, model, files={MODEL_FILE: data}), message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"model.json is damaged"),
        (b"[1, 2]", r"model.json: .*must be a mapping"),
        (b'{"format": 1, "format": 1}', r"model.json is damaged: the name 'format' occurs more than once"),
        (b'{"format": 1}', r"misses the key 'config'"),
        (b"[" * 100_000, r"model.json is damaged: its JSON is nested too deeply"),
        (b"\xff", r"model.json is damaged"),
    ],
)
def test_a_model_file_that_is_malformed_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    refused(save(tmp_path, GPT(**SMALL), files={MODEL_FILE: data}), message)


def test_a_checkpoint_without_an_architecture_is_refused(tmp_path: Path) -> None:
    refused(
        save(tmp_path, GPT(**SMALL), files={}), r"has no 'model.json'; it has model.safetensors, state.json"
    )


def test_sizes_no_memory_could_hold_are_refused_before_any_is_spent(tmp_path: Path) -> None:
    model = Transformer(**SMALL)
    for key, value, message in (
        ("vocab_size", 2**19, r"the tensor 'embedding.weight' is float32 \[31, 12\]"),
        ("d_model", 2**20 - 1, r"the tensor '.+' is float32 .+, its model needs"),
        ("vocab_size", 10**30, r"config.vocab_size: must fit in 64 bits"),
    ):
        data = change(json.loads(model_file(model)), f"config.{key}", value)
        refused(save(tmp_path / str(value), model, files={MODEL_FILE: data}), message)
    data = json.loads(model_file(model))
    for side in ("encoder", "decoder"):
        data["config"][side]["position"]["max_seq_len"] = 2**20
    data["config"]["d_model"] = 1200
    content = {MODEL_FILE: json.dumps(data).encode()}
    refused(save(tmp_path, model, files=content), r"asks for [\d,]+ bytes of tables; check its max_seq_len$")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.pop("stack.norm.weight"),
            r"has no tensor 'stack.norm.weight'; the nearest is 'stack.norm.bias'$",
        ),
        (
            lambda t: t.update({"stack.norm.wight": torch.ones(12)}),
            r"has the tensor 'stack.norm.wight', which its model does not; the nearest is 'stack.norm.weight'$",
        ),
        (
            lambda t: t.update({"stack.norm.weight": torch.ones(13)}),
            r"the tensor 'stack.norm.weight' is float32 \[13\], its model needs float32 \[12\]$",
        ),
        (
            lambda t: t.update({"stack.norm.weight": torch.ones(12, dtype=torch.float64)}),
            r"the tensor 'stack.norm.weight' is float64 \[12\], its model needs float32 \[12\]$",
        ),
        (
            lambda t: t.update({"x" * 5000: torch.ones(1)}),
            r"has the tensor 'x{200}', which its model does not",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(edit: Any, message: str, tmp_path: Path) -> None:
    model = GPT(**SMALL)
    tensors = dict(model.state_dict())
    edit(tensors)
    refused(save(tmp_path, model, model=tensors), message)


def test_a_moving_average_of_another_model_is_refused(tmp_path: Path) -> None:
    model = GPT(**SMALL)
    wrong = {"stack.norm.weight": torch.ones(5)}
    refused(save(tmp_path, model, ema=wrong), r"'stack.norm.weight' is float32 \[5\], its model needs")
