"""Files made to harm: refused in one line; nothing is run, read elsewhere, or fills the memory."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.disks import QuickDisk, save
from transformer.training import strict_json
from transformer.training.checkpoint import CheckpointError, CheckpointStore
from transformer.training.tensor_file import read_tensors, serialize


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: object = None, dtype: object = "F32") -> dict[str, object]:
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


TWICE = b'{"a":%s,"a":%s}' % tuple(json.dumps(entry(0, 4, [1], dtype)).encode() for dtype in ("F32", "I32"))
FOUR = bytes(4)
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors file"),
    "no header": (b"\x02\0\0", "not a safetensors file"),
    "length 2^63": (packed({}, length=2**63), "header of 9,223,372,036,854,775,808 bytes cannot be right"),
    "length 2^64-1": (packed({}, length=2**64 - 1), "cannot be right"),
    "length beyond the file": (packed({}, length=3), "cannot be right"),
    "header above the cap": (packed(b" " * 8_000_001), "header of 8,000,001 bytes cannot be right"),
    "duplicate names": (packed(TWICE, FOUR), "the name 'a' occurs more than once"),
    "not JSON": (packed(b"{'a': 1}"), "is damaged"),
    "not UTF-8": (packed(b'{"\xff\xfe": 1}'), "is damaged"),
    "nested deeply": (packed(b"[" * 1_000_000), "nested too deeply"),
    "nested objects": (packed(b'{"a":' * 500_000), "nested too deeply"),
    "a list": (packed([]), "not a table of tensors"),
    "entry not a table": (packed({"a": 3}), "needs exactly dtype, shape and data_offsets"),
    "extra field": (packed({"a": {**entry(0, 4), "code": "x"}}, FOUR), "needs exactly"),
    "unknown type": (packed({"a": entry(0, 4, dtype="F33")}, FOUR), "unknown type 'F33'"),
    "type not a text": (packed({"a": entry(0, 4, dtype=["F32"])}, FOUR), "unknown type"),
    "negative size": (packed({"a": entry(0, 4, [-1, -1])}, FOUR), "not a plain size"),
    "fractional size": (packed({"a": entry(0, 4, [1.0])}, FOUR), "not a plain size"),
    "boolean size": (packed({"a": entry(0, 4, [True])}, FOUR), "not a plain size"),
    "size 2^63": (packed({"a": entry(0, 0, [0, 2**63])}), "not a plain size"),
    "huge product": (packed({"a": entry(0, 4, [2**62] * 60)}, FOUR), "not what its shape needs"),
    "a million dimensions": (packed({"a": entry(0, 4, [1] * 1_000_000)}, FOUR), "not a plain size"),
    "5000-digit number": (packed(b'{"a": ' + b"9" * 5000 + b"}"), "is damaged|needs exactly"),
    "NaN offset": (
        packed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[NaN,4]}}', FOUR),
        "not a plain size",
    ),
    "backwards": (packed({"a": entry(4, 0, [1])}, FOUR), "outside the file"),
    "beyond the end": (packed({"a": entry(0, 8)}, FOUR), "outside the file's 4 bytes"),
    "three offsets": (packed({"a": {**entry(0, 4), "data_offsets": [0, 4, 8]}}, FOUR), "not a plain size"),
    "overlap": (packed({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlap or leave a hole at 8"),
    "hole": (packed({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "overlap or leave a hole at 4"),
    "bytes of no tensor": (packed({"a": entry(0, 4)}, bytes(12)), "8 bytes belong to no tensor"),
    "shape too small": (packed({"a": entry(0, 8, [1])}, bytes(8)), "not what its shape needs"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_tensor_files(tmp_path: Path, case: str) -> None:
    data, message = MALFORMED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


def test_the_library_alone_would_accept_duplicates(tmp_path: Path) -> None:
    """Why there is a check of our own; when this fails, the check may go."""
    path = tmp_path / "twice.safetensors"
    path.write_bytes(packed(TWICE, FOUR))
    assert load_file(path).keys() == {"a"}


def test_random_headers_never_escape_as_other_errors(tmp_path: Path) -> None:
    good = b"".join(serialize({"a": torch.arange(6.0), "b.c": torch.ones(2, 3, dtype=torch.int8)}))
    path = tmp_path / "model.safetensors"
    dice = random.Random(0)
    outcomes = {True: 0, False: 0}
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(dice.choice((1, 1, 2, 5))):
            data[dice.randrange(int.from_bytes(good[:8], "little") + 8)] = dice.choice(
                b'{}[]",:0159-.eE \x00\xffaF'
            )
        path.write_bytes(data)
        try:
            outcomes[bool(read_tensors(path))] += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
            outcomes[False] += 1
    assert outcomes[False] > 1500


def test_a_huge_claim_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tracemalloc.start()
    for data in (packed({}, length=2**40), packed({"a": entry(0, 2**40)}, FOUR)):
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


class Evil:
    """Unpickling this makes a file; nothing may ever do that."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


def test_a_pickle_in_disguise_is_never_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payloads = [pickle.dumps(Evil(canary), protocol=protocol) for protocol in range(6)]
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", payloads[2])
    payloads.append((tmp_path / "weights.pt").read_bytes())
    for number, payload in enumerate(payloads):
        for name in ("model.safetensors", "state.json", "MANIFEST.json", "config.yaml"):
            store = CheckpointStore(tmp_path / f"run-{number}-{name}", file_system=QuickDisk())
            folder = save(store, 1, 1)
            forge(folder, lambda document: None, {name: payload})
            with pytest.raises(CheckpointError):
                checkpoint = store.open(1)
                checkpoint.tensors("model")
                assert checkpoint.file(name) == payload  # text we were given is given back, as bytes
                raise CheckpointError("opaque bytes are data")
    assert not canary.exists()
    pickle.loads(payloads[2])
    assert canary.exists(), "the payload does work where something unpickles it"


def forge(folder: Path, change: Callable[[dict[str, Any]], object], contents: dict[str, bytes]) -> None:
    """Rewrite a checkpoint as an attacker would, with sizes, hashes and digest that fit."""
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    if "MANIFEST.json" in contents:
        return
    document = json.loads((folder / "MANIFEST.json").read_bytes())
    document.pop("sha256")
    for name, data in contents.items():
        document["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(document)
    digest = hashlib.sha256(strict_json.encode(document, "")).hexdigest()
    (folder / "MANIFEST.json").write_bytes(strict_json.encode({**document, "sha256": digest}, ""))


BAD_NAMES = [
    "..", ".", "", "../step-00000001/model.safetensors", "/etc/passwd", "a/b", "a\\b", "..\\x", "a\0b",
    "a\nb", ".hidden", "C:\\x", "~", "~/x", "%2e%2e", "ﬁle", "a b", "x" * 300, "MANIFEST.json",
    "./model.safetensors", "//x", "model.safetensors/",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path, file_system=QuickDisk())
    folder = save(store, 1, 1)
    secret = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    forge(folder, lambda document: document["files"].update({name: secret}), {})
    with pytest.raises(CheckpointError, match="cannot be a checkpoint's file") as caught:
        store.open(1)
    assert "\n" not in str(caught.value)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a newer format": (lambda d: d.update(format=2), "has format 2; this version reads 1"),
    "no step": (lambda d: d.pop("step"), "does not have the fields"),
    "another step": (lambda d: d.update(step=2), "belongs to step 2, not to this folder"),
    "negative step": (lambda d: d.update(step=-1), "does not have the fields"),
    "boolean step": (lambda d: d.update(step=True), "does not have the fields"),
    "score a text": (lambda d: d.update(score="0"), "does not have the fields"),
    "files a list": (lambda d: d.update(files=[]), "does not have the fields"),
    "a size a text": (lambda d: d["files"]["state.json"].update(size="9"), "does not have the fields"),
    "a hash a number": (lambda d: d["files"]["state.json"].update(sha256=9), "does not have the fields"),
    "aliases a list": (lambda d: d.update(aliases=[]), "does not have the fields"),
    "an alias of a list": (
        lambda d: d["aliases"]["model.safetensors"].update(b=[]),
        "does not have the fields",
    ),
    "another field": (lambda d: d.update(code="x"), "its digest does not match"),
    "no state": (lambda d: d["files"].pop("state.json"), "lists no state.json"),
    "a file too many": (
        lambda d: d["files"].update({"vocab.txt": {"size": 1, "sha256": ""}}),
        r"vocab\.txt is missing",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_forged_manifests(tmp_path: Path, case: str) -> None:
    change, message = CHANGES[case]
    store = CheckpointStore(tmp_path, file_system=QuickDisk())
    forge(save(store, 1, 1), change, {})
    with pytest.raises(CheckpointError, match=message) as caught:
        store.open(1)
    assert "\n" not in str(caught.value)


def test_forged_ties_are_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, file_system=QuickDisk())
    folder = save(store, 1, 1)
    for ties in ({"x": "nowhere"}, {"a": "a"}):
        forge(folder, lambda document, ties=ties: document["aliases"].update({"model.safetensors": ties}), {})
        with pytest.raises(CheckpointError, match="cannot tie"):
            store.open(1).tensors("model")


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_links_and_devices_are_never_followed(tmp_path: Path, kind: str) -> None:
    store = CheckpointStore(tmp_path / "run", file_system=QuickDisk())
    folder = save(store, 1, 1)
    for name in ("model.safetensors", "state.json", "MANIFEST.json"):
        path = folder / name
        data = path.read_bytes()
        path.unlink()
        if kind == "link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
        elif kind == "folder":
            path.mkdir()
        else:
            os.mkfifo(path)
        with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
            store.open(1)
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(data)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="is not a folder"):
        store.open(1)


@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json"])
def test_hostile_json(tmp_path: Path, name: str) -> None:
    for data in (
        b"[" * 200_000,
        b'{"a": 1, "a": 2}',
        b" " * 8_000_001,
        b"\xff",
        b"",
        b"[]",
        b"1e999",
        b"null",
    ):
        store = CheckpointStore(tmp_path / str(len(data)) / data[:3].hex(), file_system=QuickDisk())
        forge(save(store, 1, 1), lambda document: None, {name: data})
        with pytest.raises(CheckpointError) as caught:
            store.open(1)
        assert "\n" not in str(caught.value)
