"""Two architectures, and what is said of the difference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from transformer.analysis.difference import Difference, differences, sizes_of, told
from transformer.cli import run
from transformer.enhancements import SWITCHES
from transformer.enhancements.normalization.rms_norm import RMSNormConfig
from transformer.enhancements.position.rope import rope
from transformer.enhancements.position.yarn import YaRNRopeScalingConfig
from transformer.enhancements.switches import apply_switches
from transformer.interop import to_huggingface
from transformer.models import FAMILIES, build, gpt, llama, recurrent_gemma, transformer

DIMS: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 48,
    "n_heads": 4,
    "n_layers": 4,
    "d_ff": 64,
    "dropout": 0.0,
}


def test_gpt_and_llama_differ_by_what_llama_changed() -> None:
    assert told(gpt(**DIMS, max_seq_len=32), llama(**DIMS, max_seq_len=32)).splitlines() == [
        "stack blocks 1–4 mixer: multi_head_attention → grouped_query_attention "
        "(Self-attention whose heads may share keys and values; bias true → false)",
        "stack blocks 1–4 feed_forward: gelu_feed_forward → gated_feed_forward "
        "(A feed-forward network with a gate; bias true → false)",
        "stack blocks 1–4 norm and stack norm: layer_norm → rms_norm (Root-mean-square normalization with a gain)",
        "stack position: learned_position → rotary_position (Rotary position embedding)",
        "model: tie_embeddings true → false",
    ]


def test_one_block_of_many_and_a_part_in_a_part() -> None:
    config = gpt(**DIMS)
    block = replace(config.stack.blocks[2], norm=RMSNormConfig(1e-4))  # type: ignore[type-var]
    blocks = (*config.stack.blocks[:2], block, config.stack.blocks[3])
    other = replace(config, stack=replace(config.stack, blocks=blocks))
    change = "layer_norm → rms_norm (Root-mean-square normalization with a gain; epsilon 1e-05 → 0.0001)"
    assert differences(config, other) == [Difference(("stack blocks 3 norm",), change)]
    assert told(config, gpt(**{**DIMS, "n_layers": 2, "d_ff": 80})).splitlines() == [
        "stack blocks: 4 → 2",
        "stack blocks 1–2 feed_forward: d_ff 64 → 80",
    ]
    turned, scaled = rope()(config), rope(scaling=YaRNRopeScalingConfig(4.0, 32))(config)
    (only,) = differences(turned, scaled)
    assert str(only).startswith(
        "stack position scaling: no_rope_scaling → yarn_rope_scaling (YaRN for sequences "
    )
    assert "factor 4.0" in str(only) and "original_length 32" in str(only)


def test_blocks_in_turn_are_told_together() -> None:
    sizes: dict[str, Any] = {"vocab_size": 99, "d_model": 48, "n_heads": 4, "n_layers": 14, "d_ff": 64}
    lines = told(recurrent_gemma(**sizes), recurrent_gemma(**sizes, window=9, d_inner=96)).splitlines()
    assert lines == [
        "stack blocks 1–2, 4–5, 7–8, …, 13–14 mixer: d_inner none → 96",
        "stack blocks 3, 6, 9, 12 mixer: window 2048 → 9",
    ]
    (line,) = told(recurrent_gemma(**sizes), recurrent_gemma(**{**sizes, "d_ff": 65})).splitlines()
    assert line == "stack blocks 1–14 feed_forward: d_ff 64 → 65"


def test_a_decoder_is_compared_with_a_decoder() -> None:
    lines = told(transformer(**DIMS), gpt(**DIMS)).splitlines()
    assert lines[0] == "model: encoder_decoder → decoder_only (A decoder-only model)"
    assert "stack blocks 1–4: cross_attention cross_attention → none" in lines
    assert "stack blocks 1–4 wiring: post_norm → pre_norm (Normalize the input of the branch)" in lines


def test_nothing_is_overlooked_and_nothing_invented() -> None:
    """Among the families, and what each flag makes of GPT, some difference is told exactly where there is one."""
    small = {"vocab_size": 99, "d_model": 48, "n_layers": 2}
    configs: list[Any] = [family(**small) for family in FAMILIES.values()]
    for flag in SWITCHES:
        try:
            configs.append(apply_switches(gpt(**DIMS), {flag: True})[0])
        except ValueError:  # not for a model of this kind, or not alone
            continue
    assert len(configs) > 30
    plain = gpt(**DIMS)
    for config in configs:
        assert differences(config, config) == [] and told(config, config) == "no difference"
        assert bool(differences(plain, config)) == bool(differences(config, plain)) == (plain != config)
    for first, second in pairwise(configs):
        assert bool(differences(first, second)) == (first != second)


def test_sizes_are_those_that_families_take() -> None:
    assert sizes_of(llama(**DIMS, max_seq_len=32)) == {
        "vocab_size": 99, "d_model": 48, "n_layers": 4, "n_heads": 4, "max_seq_len": 32,
    }  # fmt: skip


def test_two_models_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
    sizes = "d_model: 16, n_heads: 2, n_layers: 2"
    for family in ("gpt", "llama"):
        (tmp_path / f"{family}.yaml").write_text(
            f"model: {{family: {family}, {sizes}}}\ndata: {{kind: text, path: text.txt, context: 8}}\n"
            "schedule: {kind: constant}\n"
        )
    to_huggingface(build(llama(50, 16, 2, 2, d_ff=24)), tmp_path / "published")
    assert run(["inspect", "gpt.yaml", "llama.yaml"]) == 0
    said = capsys.readouterr().out
    assert "from gpt.yaml to llama.yaml\n" in said and "layer_norm → rms_norm" in said
    assert run(["inspect", "llama", "published"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "from llama to published"
    assert said[1] == "stack blocks 1–2 feed_forward: d_ff 256 → 24" and said[2].startswith("parameters: ")
    assert run(["inspect", "gpt", "gpt"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "no difference" and said[2] == "parameters: 124,439,808 → 124,439,808"
    assert said[3].startswith("FLOPs per token, 128 at once: ")
    for given, message in [
        (["gpt", "lama"], "'lama' is no family, configuration file, run folder or published model; did you"),
        (["gpt", "gpt.yml"], "did you mean 'gpt.yaml'?"),
        (["gpt"], "inspect needs --config FILE, or two models to compare, such as gpt llama"),
    ]:  # fmt: skip
        assert run(["inspect", *given]) == 2
        assert message in capsys.readouterr().err
