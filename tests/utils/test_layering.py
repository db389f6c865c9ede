"""Layering: what wins, where it came from, and every unreadable file in one line with its line number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from transformer.utils.codec import ConfigError
from transformer.utils.layering import MAX_BYTES, Layers, read_layers


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(*texts: str | bytes, overrides: tuple[str, ...] = ()) -> Layers:
    names = [f"{letter}.yaml" for letter, _ in zip("abc", texts, strict=False)]
    for name, text in zip(names, texts, strict=True):
        Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_layers(names, overrides)


def test_later_layers_win_key_by_key_and_every_origin_is_kept() -> None:
    layers = read(
        "# comment\nmodel:\n  width: 64\n  heads: 8\nrate: 1e-3\n",
        "model:\n  heads: 4\n",
        overrides=("--model.depth", "-2", "rate=2e-3", "--tags=[a, {b: 1}]"),
    )
    assert layers.data == {
        "model": {"width": 64, "heads": 4, "depth": -2},
        "rate": 2e-3,
        "tags": ["a", {"b": 1}],
    }
    assert {k: v for k, v in layers.origin.items() if k and k != "model"} == {
        "model.width": "a.yaml:3",
        "model.heads": "b.yaml:2",
        "model.depth": "--model.depth",
        "rate": "--rate",
        "tags": "--tags",
        "tags[0]": "--tags",
        "tags[1]": "--tags",
        "tags[1].b": "--tags",
    }


def test_values_are_read_as_yaml_1_2() -> None:
    text = "a: 1e-3\nb: no\nc: 0o17\nd: 010\ne: ~\nf: 2026-01-01\ng: 'true'\nh: true\ni: 1:30\nj: .5\n"
    expected = {"a": 1e-3, "b": "no", "c": 15, "d": 10, "e": None, "f": "2026-01-01"}
    assert read(text).data == expected | {"g": "true", "h": True, "i": "1:30", "j": 0.5}


def test_a_list_replaces_a_list_with_its_origins() -> None:
    layers = read("a: [1, 2, 3]\n", "a:\n  - 9\n")
    assert layers.data == {"a": [9]}
    assert layers.origin["a[0]"] == "b.yaml:2"
    assert "a[1]" not in layers.origin


def test_another_kind_replaces_and_the_same_or_no_kind_merges() -> None:
    noam = "schedule: {kind: noam, warmup: 10}\n"
    assert read(noam, "schedule: {kind: cosine}\n").data["schedule"] == {"kind": "cosine"}
    assert read(noam, "schedule: {factor: 2}\n").data["schedule"] == {
        "kind": "noam",
        "warmup": 10,
        "factor": 2,
    }
    late = read(noam, overrides=("schedule.peak=1", "schedule.kind=cosine")).data["schedule"]
    assert late == {"kind": "cosine", "peak": 1}, "overrides given together belong to one layer, in any order"


def test_empty_files_and_no_files_are_empty_layers() -> None:
    assert read("", "# nothing\n").data == read_layers([]).data == {}


def test_the_last_of_two_overrides_wins() -> None:
    assert read_layers([], ["a.b=1", "--a.b", "2"]).data == {"a": {"b": 2}}


BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 99))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3: the key 'a' is given twice; keep one"),
        ("a:\n\tb: 1\n", "a.yaml:2: is not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 'x\n", "a.yaml:2: is not valid YAML: found unexpected end of stream"),
        (b"a: 1\nb: \xff\n", "a.yaml:2: is not valid YAML: invalid start byte"),
        (b"\x00\x01\x02" * 99, "a.yaml:1: is not valid YAML"),
        ("a: 1\n\x07: 2\n", "a.yaml:2: is not valid YAML: special characters are not allowed"),
        ("- 1\n- 2\n", "a.yaml:1: must hold 'key: value' lines, got [1, 2]"),
        ("hello\n", "a.yaml:1: must hold 'key: value' lines, got 'hello'"),
        ("1: 2\n", "a.yaml:1: a key must be a word, got '1'"),
        ("? [a]\n: 1\n", "a.yaml:1: a key must be a word"),
        ("a: 1\n---\nb: 2\n", "a.yaml:2: a second document begins; keep one"),
        (BOMB, "a.yaml:2: aliases and tags are not read; write the value out"),
        ("a: &a [*a]\n", "a.yaml:1: aliases and tags are not read"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "a.yaml:2: aliases and tags are not read"),
        ("a: !!python/name:os.system x\n", "a.yaml:1: aliases and tags are not read"),
        ("<<: {a: 1}\n", "a.yaml:1: aliases and tags are not read"),
        ("a: " + "9" * 6000, "is no number that can be read"),
        ("a: 0x_\n", "a.yaml:1: '0x_' is no number that can be read"),
        ("a:\n" + " [\n" * 5000, "a.yaml:66: is nested more than 64 deep"),
        ("a: " + "[" * 5000, "a.yaml:1: is nested more than 64 deep"),
        ("- " * 5000, "a.yaml:1: is nested more than 64 deep"),
        ("#" * (MAX_BYTES + 1), "a.yaml: is too large for a configuration (more than 1048576 bytes)"),
        ("%YAML 9.9\n---\na: 1\n", "a.yaml:1: is not valid YAML: found incompatible YAML document"),
    ],
)
def test_an_unreadable_file_is_refused_in_one_line_with_its_line(text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def test_a_missing_file_names_the_nearest_one() -> None:
    Path("quickstart.yaml").write_text("a: 1")
    expected = (
        r"^quikstart.yaml: cannot be read: No such file or directory; did you mean 'quickstart.yaml'\?$"
    )
    with pytest.raises(ConfigError, match=expected):
        read_layers(["quikstart.yaml"])


def test_what_is_not_a_file_is_never_opened() -> None:
    os.mkfifo("pipe.yaml")
    for name in ("pipe.yaml", ".", "/dev/zero"):
        with pytest.raises(ConfigError, match="cannot be read: not a regular file$"):
            read_layers([name])
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte$"):
        read_layers(["a\0b"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--a.b"], "--a.b: needs a value; write --a.b VALUE or a.b=VALUE"),
        (["a.b", "3"], "--a.b: needs a value"),
        (["--a", "--b"], "--a: needs a value"),
        (["=3"], "'=3': must be --section.key VALUE or section.key=VALUE"),
        (["a..b=3"], "'a..b=3': must be --section.key VALUE"),
        (["a[0].b=3"], "'a[0].b=3': must be --section.key VALUE"),
        (["a.b=[1"], "--a.b: is not valid YAML: expected ',' or ']'"),
        (["a={b: 1, b: 2}"], "--a: the key 'b' is given twice; keep one"),
        (["a=*x"], "--a: aliases and tags are not read; write the value out"),
        (["a=\udcff"], "--a: is not valid YAML: invalid start byte"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(tokens: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_layers([], tokens)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
