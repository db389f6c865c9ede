"""The `execution` section: how a run is computed, and nothing else of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.test_run_fuzz import base_config, write_corpus
from transformer.enhancements import KERNELS, best_attention, naive_attention
from transformer.run import build_parts, decode_run, encode_run
from transformer.utils.codec import ConfigError


def test_a_kernel_changes_neither_the_configuration_nor_the_model(tmp_path: Path) -> None:
    plain = encode_run(base_config(write_corpus(tmp_path)))
    assert set(plain["execution"].values()) == {"auto"}
    config = decode_run(plain, {})
    parts = build_parts(config)
    assert parts.model.execution.kernel is naive_attention
    for name, kernel in KERNELS.items():
        chosen = decode_run({**plain, "execution": {"kernel": name}}, {})
        assert encode_run(chosen)["execution"] == {**plain["execution"], "kernel": name}
        assert chosen == config and hash(chosen) == hash(config)
        other = build_parts(chosen)
        assert other.model.execution.kernel is kernel
        assert other.model.config == parts.model.config
        assert other.fingerprints() == parts.fingerprints()
        assert other.files()["model.json"] == parts.files()["model.json"]


def test_auto_is_what_the_switches_say(tmp_path: Path) -> None:
    plain = encode_run(base_config(write_corpus(tmp_path)))
    plain["model"]["use_flash_attention"] = True
    assert build_parts(decode_run(plain, {})).model.execution.kernel is best_attention
    plain["execution"] = {"kernel": "chunked"}
    assert build_parts(decode_run(plain, {})).model.execution.kernel is KERNELS["chunked"]


def test_an_unknown_kernel_is_refused_with_the_nearest(tmp_path: Path) -> None:
    plain = encode_run(base_config(write_corpus(tmp_path)))
    with pytest.raises(ConfigError, match=r"execution\.kernel.*flash"):
        decode_run({**plain, "execution": {"kernel": "flashy"}}, {})
