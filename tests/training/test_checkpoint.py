"""What a checkpoint keeps, what it refuses, and what remains when the disk fails."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.training.disks import FailingDisk, QuickDisk, folder_in_memory, save, token_of
from transformer.training.checkpoint import CheckpointError, CheckpointStore
from transformer.training.tensor_file import serialize

pytestmark = pytest.mark.shapes_unchecked

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32,
    torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip
DISK_ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from folder_in_memory()


def fill(folder: Path, steps: int = 3) -> CheckpointStore:
    store = CheckpointStore(folder, file_system=QuickDisk())
    for step in range(1, steps + 1):
        save(store, step, step)
    return store


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    every = {str(dtype): torch.randint(0, 2, (3, 5)).to(dtype) for dtype in DTYPES}
    odd = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "another_empty": torch.empty(0, 4),
        "strided": torch.randn(6, 8)[::2, 1::3],
        "transposed": torch.randn(4, 7, dtype=torch.float64).T,
        "ünïcode.näme": torch.arange(3),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    state = {"tokens": 2**60, "loss": 0.1 + 0.2, "text": "Über\n", "list": [1, None, True]}
    store = CheckpointStore(tmp_path / "new" / "run")
    path = store.save(
        500, tensors={"model": every, "ema": odd}, state=state, files={"tokenizer.json": b"\x00\xff"}
    )
    checkpoint = store.newest()
    assert checkpoint is not None
    assert path == checkpoint.path == tmp_path / "new" / "run" / "checkpoints" / "step-00000500"
    assert (checkpoint.step, checkpoint.state, checkpoint.skipped) == (500, state, ())
    assert checkpoint.names == ("ema.safetensors", "model.safetensors", "state.json", "tokenizer.json")
    assert checkpoint.file("tokenizer.json") == b"\x00\xff"
    for stem, expected in (("model", every), ("ema", odd)):
        loaded = checkpoint.tensors(stem)
        assert loaded.keys() == expected.keys()
        for name, tensor in expected.items():
            assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
            assert torch.equal(loaded[name].contiguous().view(-1), tensor.detach().contiguous().view(-1)), (
                name
            )


def test_the_safetensors_library_reads_our_files(tmp_path: Path) -> None:
    tensors = {"x": torch.randn(3, 4), "flag": torch.tensor(True), "y": torch.randn(5, dtype=torch.float64)}
    (tmp_path / "a.safetensors").write_bytes(b"".join(serialize(tensors)))
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys() and all(
        torch.equal(loaded[name], tensors[name]) for name in tensors
    )


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lm_head = nn.Embedding(100, 64), nn.Linear(64, 100, bias=False)
            self.lm_head.weight = self.embedding.weight

    model = Tied()
    store = CheckpointStore(tmp_path)
    path = store.save(1, tensors={"model": model.state_dict()}, state={})
    assert (path / "model.safetensors").stat().st_size < 100 * 64 * 4 + 300
    loaded = store.open(1).tensors("model")
    assert loaded["lm_head.weight"] is loaded["embedding.weight"]
    Tied().load_state_dict(loaded)
    assert torch.equal(loaded["lm_head.weight"], model.lm_head.weight)


def test_views_of_one_storage_are_not_taken_for_tied(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    views = {"whole": whole, "head": whole[:6], "table": whole.view(3, 4), "bits": whole.view(torch.int32)}
    store = CheckpointStore(tmp_path)
    store.save(1, tensors={"model": views}, state={})
    loaded = store.open(1).tensors("model")
    assert all(torch.equal(loaded[name], views[name]) for name in views)
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]
)
@pytest.mark.parametrize("stem", ["model", "optimizer"])
def test_what_is_not_finite_is_never_saved(
    tmp_path: Path, value: float, dtype: torch.dtype, stem: str
) -> None:
    store = fill(tmp_path, 1)
    before = sorted(tmp_path.rglob("*"))
    bad = torch.ones(7, dtype=dtype)
    bad[3] = value
    tensors = {"model": {"ok": torch.ones(2)}, stem: {"ok": torch.ones(2), "blocks.0.weight": bad}}
    with pytest.raises(
        CheckpointError, match=f"step 2 is not saved: in '{stem}', 'blocks.0.weight' has values that are not"
    ):
        store.save(2, tensors=tensors, state={})
    assert sorted(tmp_path.rglob("*")) == before
    assert (newest := store.newest()) is not None and token_of(newest) == 1


def test_nan_in_float8_is_found(tmp_path: Path) -> None:
    bad = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="in 'model', 'w' has values that are not finite"):
        CheckpointStore(tmp_path).save(1, tensors={"model": {"w": bad}}, state={})


def test_nonsense_is_refused_in_one_line(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    cases: list[tuple[dict[str, object], str]] = [
        ({"step": -1}, "a step counts from 0, not -1"),
        ({"state": {"loss": float("nan")}}, "state.json cannot be written as JSON"),
        ({"tensors": {"../model": {}}}, "'../model.safetensors' cannot be a checkpoint's file"),
        ({"files": {"/etc/passwd": b""}}, "'/etc/passwd' cannot be a checkpoint's file"),
        ({"files": {"MANIFEST.json": b""}}, "'MANIFEST.json' cannot be a checkpoint's file"),
        ({"files": {"state.json": b""}}, "two files named 'state.json'"),
        (
            {"tensors": {"model": {"w": torch.zeros(2, dtype=torch.complex128)}}},
            "'w' is torch.strided torch.complex128, not dense F64",
        ),
        ({"tensors": {"model": {"w": torch.eye(2).to_sparse()}}}, "'w' is torch.sparse_coo"),
    ]
    for change, message in cases:
        arguments = {"step": 1, "tensors": {"model": {"w": torch.ones(2)}}, "state": {}, **change}
        with pytest.raises(CheckpointError, match=message) as caught:
            store.save(**arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert store.newest() is None and list(tmp_path.rglob(".tmp*")) == []
    for keep_last, keep_best in ((0, 1), (1, -1)):
        with pytest.raises(
            ValueError,
            match=f"keep_last is {keep_last} and keep_best is {keep_best}; they must be at least 1",
        ):
            CheckpointStore(tmp_path, keep_last=keep_last, keep_best=keep_best)


def test_opening_says_what_there_is(tmp_path: Path) -> None:
    store = fill(tmp_path)
    assert store.steps() == (1, 2, 3)
    assert token_of(store.open(2)) == token_of(store.open(tmp_path / "checkpoints/step-00000002")) == 2
    with pytest.raises(CheckpointError, match="has no step 7; it has 1, 2, 3"):
        store.open(7)
    with pytest.raises(CheckpointError, match="is not a folder"):
        store.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json is missing"):
        store.open(tmp_path)
    with pytest.raises(
        CheckpointError, match="has no 'ema.safetensors'; it has config.yaml, model.safetensors"
    ):
        store.open(1).tensors("ema")
    with pytest.raises(CheckpointError, match=r"has no 'vocab\.txt'; it has config\.yaml"):
        store.open(1).file("vocab.txt")
    (tmp_path / "link").symlink_to(tmp_path / "checkpoints/step-00000001")
    (tmp_path / "checkpoints/step-00000001").rename(tmp_path / "my model")
    assert token_of(store.open(tmp_path / "my model")) == 1  # a copy elsewhere may have any name


def test_rotation_keeps_the_newest_the_best_and_what_pointers_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=2, file_system=QuickDisk())
    scores = [5.0, 1.0, float("nan"), 2.0, 3.0, float("inf"), None, 4.0]
    for step, score in enumerate(scores):
        save(store, step, step, score)
    assert store.steps() == (1, 3, 6, 7)
    best, newest = store.best(), store.newest()
    assert best is not None and newest is not None
    assert (best.step, best.score, newest.step) == (1, 1.0, 7)
    for name, step in (("latest", 7), ("best", 1)):
        pointer = json.loads((tmp_path / f"{name}.json").read_text())
        assert pointer["step"] == step and (tmp_path / pointer["path"] / "MANIFEST.json").is_file()


def test_going_back_and_saving_a_step_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, file_system=QuickDisk())
    for step in (10, 20, 30):
        save(store, step, step)
    save(store, 5, 5)  # gone back to an older checkpoint, elsewhere or here
    assert store.steps() == (5, 30)
    inode = store.open(5).path.stat().st_ino
    save(store, 5, 5)
    assert store.open(5).path.stat().st_ino == inode, "an equal one that is there already stays"
    save(store, 5, 6)
    assert token_of(store.open(5)) == 6
    (store.open(5).path / "model.safetensors").write_bytes(b"")
    save(store, 5, 6)
    assert token_of(store.open(5)) == 6, "a damaged one is replaced"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_starting_afresh_is_not_mistaken_for_resuming(tmp_path: Path) -> None:
    store = fill(tmp_path, 2)
    for path in (tmp_path / "checkpoints").rglob("model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(
        CheckpointError, match="no checkpoint in .* can be read: .*0 bytes instead of .*restore one"
    ):
        store.newest()
    subprocess.run(["rm", "-r", str(tmp_path / "checkpoints")], check=True)
    with pytest.raises(CheckpointError, match=r"latest\.json names step 2, which is gone"):
        store.newest()
    (tmp_path / "latest.json").unlink()
    assert store.newest() is None and store.best() is None and store.steps() == ()


def test_sweep_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    store = fill(tmp_path, 2)
    folder = tmp_path / "checkpoints"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    for name in (".tmp-3-1-ab", ".trash-step-00000001-1-ab"):
        (folder / name / "nested").mkdir(parents=True)
        (folder / name / "nested" / "file").write_text("x")
        (folder / name / "link").symlink_to(outside)
    (tmp_path / ".tmp-latest.json-1-ab").write_text("{")
    (folder / ".tmp-link").symlink_to(outside)
    (folder / "step-00000002").rename(folder / ".old-00000002-1-ab")  # a replacement cut short
    assert (newest := store.newest()) is not None and token_of(newest) == 2
    store.sweep()
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "latest.json", "outside"]
    assert (outside / "precious").read_text() == "x"


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("lasting", [False, True])
def test_every_operation_may_fail(tmp_path: Path, lasting: bool, replacing: bool) -> None:
    """Each operation of a save × {ENOSPC, EIO, EDQUOT}: one line, nothing lost, the next save works."""
    count = FailingDisk(at=10**9)
    step = 3 if replacing else 4
    template = fill(tmp_path / "template").folder
    shutil.copytree(template, tmp_path / "probe")
    save(CheckpointStore(tmp_path / "probe", file_system=count), step, 4)
    assert count.count > 20
    for at in range(count.count):
        for code in DISK_ERRORS:
            folder = tmp_path / "run"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(template, folder)
            with pytest.raises(CheckpointError) as caught:
                save(CheckpointStore(folder, file_system=FailingDisk(at, code, lasting)), step, 4)
            message = str(caught.value)
            assert "\n" not in message and str(tmp_path) in message and os.strerror(code) in message
            assert " (needs about 4,928 bytes, " in message and "earlier checkpoints are untouched" in message
            assert list(folder.rglob(".tmp-*")) == []
            store = CheckpointStore(folder, file_system=QuickDisk())
            newest = store.newest()
            assert newest is not None
            saved = "is saved, but" in message
            assert token_of(newest) in ({4} if saved else {3, 4})
            assert token_of(store.open(2)) == 2
            save(store, 5, 5)
            store.sweep()
            assert store.steps()[-1] == 5 and list(folder.rglob(".*")) == []


def test_a_file_size_limit_of_the_kernel(tmp_path: Path) -> None:
    """A real refusal, half-way through a real write."""
    store = CheckpointStore(tmp_path)
    save(store, 1, 1)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"step 2 is not saved: .*model\.safetensors: File too large"
        ):
            save(store, 2, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert list(tmp_path.rglob(".tmp*")) == []
    assert (newest := store.newest()) is not None and token_of(newest) == 1
    save(store, 2, 2)
    assert token_of(store.open(2)) == 2


def test_awkward_folders(tmp_path: Path) -> None:
    """Spaces, other scripts, a linked run folder; a name the system cannot have is one line."""
    (tmp_path / "real").mkdir()
    (tmp_path / "linked run").symlink_to(tmp_path / "real")
    for folder in (tmp_path / "a b" / "Ünï 跑", tmp_path / "linked run", tmp_path / ("x" * 200)):
        store = CheckpointStore(folder)
        save(store, 1, 1)
        assert (newest := store.newest()) is not None and token_of(newest) == 1
    with pytest.raises(CheckpointError, match="step 1 is not saved: .*File name too long"):
        save(CheckpointStore(tmp_path / ("x" * 300)), 1, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="step 1 is not saved: .*(File exists|Not a directory)"):
        save(CheckpointStore(tmp_path / "file"), 1, 1)


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("counts /proc/self/fd")
    store = fill(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for step in range(4, 30):
        save(store, step, step)
        assert store.newest() is not None
    assert len(os.listdir("/proc/self/fd")) == before
