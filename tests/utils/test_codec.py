"""The codec: the inverse law on any configuration, and every kind of mistake by its message."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.utils.sample_schema import KINDS, Attention, Cosine, Mixer, Noam, Recurrent, Sample, Training
from transformer.utils.codec import ConfigError, child, decode, encode, show, suggest
from transformer.utils.layering import dump_yaml, read_layers

rates = st.floats(0, 1, exclude_min=True)
counts = st.integers(1, 2**62)
attentions = st.builds(lambda heads, n: Attention(heads, heads * n), st.integers(1, 99), st.integers(1, 99))
mixers: st.SearchStrategy[Mixer] = st.recursive(attentions, lambda m: st.builds(Recurrent, m, counts))
trainings = st.builds(
    Training,
    max_steps=counts,
    precision=st.sampled_from(["float32", "bfloat16"]),
    resume=st.sampled_from(["auto", "never"]) | counts,
    betas=st.tuples(rates, rates),
    shuffle=st.booleans(),
    note=st.text(max_size=20)
    | st.sampled_from(["1e-3", "no", "null", "~", ".5e3", "2026-01-01", "- a", "0x1f"]),
)
samples = st.builds(
    Sample,
    layers=st.lists(mixers, min_size=1, max_size=3).map(tuple),
    schedule=st.builds(Noam, counts, rates) | st.builds(Cosine, rates, st.none() | rates),
    training=trainings,
    extra=st.none() | trainings,
    weights=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4).map(tuple),
)


def sample(data: object, **options: Any) -> Sample:
    return decode(Sample, data, kinds=KINDS, **options)


@given(samples)
def test_decode_inverts_encode(config: Sample) -> None:
    data = encode(config)
    assert sample(data) == config
    assert sample(json.loads(json.dumps(data))) == config


@given(samples)
@example(Sample(training=Training(note="\x85")))
@example(Sample(training=Training(note="a\u2028b\n\u2029 ")))
def test_yaml_inverts_encode(tmp_path_factory: pytest.TempPathFactory, config: Sample) -> None:
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(dump_yaml(encode(config)), encoding="utf-8")
    assert sample(read_layers([path]).data) == config


def test_encode_writes_kind_first_and_every_field() -> None:
    data = encode(Sample())
    assert list(data["layers"][1]) == ["kind", "inner", "state"]
    assert data["layers"][1]["inner"] == {"kind": "attention", "heads": 4, "width": 32}
    assert data["training"]["betas"] == [0.9, 0.98]
    assert data["extra"] is None


def test_encode_leaves_derived_fields_out() -> None:
    @dataclass(frozen=True)
    class Derived:
        given: int = 1
        derived: int = field(init=False, default=2)

    assert encode(Derived()) == {"given": 1}


def test_encode_refuses_what_has_no_plain_form() -> None:
    with pytest.raises(TypeError, match="a configuration holds plain values and dataclasses, got"):
        encode({"a": object()})


def test_left_out_keys_keep_the_default_of_the_field_at_every_depth() -> None:
    assert sample({"training": {"shuffle": False}}).training == Training(max_steps=7, shuffle=False)
    assert sample({"schedule": {"factor": 0.5}}).schedule == Noam(2000, 0.5)
    assert sample({"schedule": {"kind": "noam"}}).schedule == Noam(2000)
    assert sample({"schedule": {"kind": "cosine", "peak": 1}}).schedule == Cosine(1.0)
    assert sample({"extra": {"max_steps": 3}}).extra == Training(max_steps=3)


def test_an_integer_becomes_a_float_and_nothing_else_is_converted() -> None:
    assert isinstance(sample({"weights": [1]}).weights[0], float)
    for wrong in (True, "1", None, [1]):
        with pytest.raises(ConfigError, match=r"weights\[0\]: must be a valid number, got"):
            sample({"weights": [wrong]})


ORIGIN = {"training": "a.yaml:1", "training.max_steps": "a.yaml:2", "schedule.kind": "--schedule.kind"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"training": {"max_step": 3}},
            "training.max_step (a.yaml:1): unknown key; did you mean 'max_steps'? "
            "(allowed: max_steps, precision, resume, betas, shuffle, note)",
        ),
        (
            {"training": {"max-steps": 3}},
            "training.'max-steps' (a.yaml:1): unknown key; did you mean 'max_steps'?",
        ),
        ({"training": {1: 3}}, "training[1] (a.yaml:1): unknown key (allowed: "),
        (
            {"training": {"max_steps": 0}},
            "training.max_steps (a.yaml:2): must be greater than or equal to 1, got 0",
        ),
        ({"training": {"max_steps": True}}, "max_steps (a.yaml:2): must be a valid integer, got True"),
        ({"training": {"max_steps": "3"}}, "training.max_steps (a.yaml:2): must be a valid integer, got '3'"),
        ({"training": {"max_steps": 10**5000}}, "must fit in 64 bits, got a larger integer"),
        ({"training": {"note": 5}}, "training.note (a.yaml:1): must be a valid string, got 5"),
        (
            {"training": {"precision": "bfloat"}},
            "must be 'float32' or 'bfloat16', got 'bfloat'; did you mean 'bfloat16'?",
        ),
        (
            {"training": {"resume": "atuo"}},
            "must be 'auto' or 'never' or be a valid integer, got 'atuo'; did you mean 'auto'?",
        ),
        ({"training": {"betas": [0.9]}}, "training.betas (a.yaml:1): must be a list of 2 values, got 1"),
        ({"training": {"betas": 0.9}}, "training.betas (a.yaml:1): must be a list, got 0.9"),
        ({"training": {"betas": [0.9, float("nan")]}}, "training.betas[1] (a.yaml:1): must be"),
        ({"weights": [float("inf")]}, "weights[0]: must be a finite number, got inf"),
        ({"training": None}, "training (a.yaml:1): must be a mapping, got null"),
        ({"training": [1]}, "training (a.yaml:1): must be a mapping, got [1]"),
        ({"layers": []}, "layers: must have at least 1 item"),
        ({"layers": {"kind": "attention"}}, "layers: must be a list, got {'kind': 'attention'}"),
        (
            {"layers": [{"kind": "atention"}]},
            "layers[0].kind: unknown kind 'atention'; did you mean 'attention'?",
        ),
        ({"layers": [{"kind": "noam"}]}, "unknown kind 'noam' (allowed: attention, recurrent)"),
        ({"layers": [{"kind": ["noam"]}]}, "layers[0].kind: unknown kind ['noam'] (allowed: "),
        ({"layers": [{"heads": 8}]}, "layers[0]: needs the key 'kind', one of: attention, recurrent"),
        (
            {"layers": ["attention"]},
            "layers[0]: must be a mapping such as {kind: attention}, got 'attention'",
        ),
        ({"layers": [{"kind": "recurrent"}]}, "layers[0]: misses the key 'inner', which has no default"),
        ({"layers": [{"kind": "attention", "heads": 7}]}, "layers[0]: width 64 is not a multiple of heads 7"),
        (
            {"schedule": {"kind": "noan"}},
            "schedule.kind (--schedule.kind): unknown kind 'noan'; did you mean 'noam'?",
        ),
        ({"training": {"kind": "noam"}}, "training.kind (a.yaml:1): unknown key"),
        ([], "configuration: must be a mapping, got []"),
        ({"a\nb": 1}, "'a\\nb': unknown key"),
    ],
)
def test_every_mistake_is_one_line_with_path_origin_and_what_is_allowed(data: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sample(data, origin=ORIGIN)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_nested_path_prefix_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^run\.sample\.training\.max_steps: must be a valid integer"):
        sample({"training": {"max_steps": None}}, path="run.sample")


def test_recursive_data_deeper_than_the_stack_is_refused_in_one_line() -> None:
    data: dict[str, Any] = {"kind": "attention"}
    for _ in range(5000):
        data = {"kind": "recurrent", "inner": data}
    with pytest.raises(ConfigError, match="^configuration: is nested too deeply$"):
        sample({"layers": [data]})


def test_deep_and_long_values_are_shown_short() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "x" * 10**6, 10**5000, {"a": [10**5000]}):
        assert len(show(value)) <= 60
    with pytest.raises(ConfigError, match="note: must be a valid string, got"):
        sample({"training": {"note": deep}})


def test_a_concrete_class_with_a_kind_accepts_its_own_kind_only() -> None:
    @dataclass(frozen=True)
    class Only:
        kind: ClassVar[str] = "only"
        size: int = 1

    assert decode(Only, {"kind": "only"}) == decode(Only, {}) == Only()
    with pytest.raises(ConfigError, match=r"kind: unknown kind 'other' \(allowed: only\)"):
        decode(Only, {"kind": "other"})


def test_paths_and_suggestions() -> None:
    assert child(child("a", "b"), 3) == "a.b[3]"
    assert suggest("n-haeds", ["n_heads", "n_layers"]) == "; did you mean 'n_heads'?"
    assert suggest("zzz", ["n_heads"]) == suggest(3, ["3"]) == ""
