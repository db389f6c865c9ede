"""The run folder: its name, and the files that say what was run, where, and what came of it."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..data.files import write_atomically

RUNS = Path("runs")


def new_folder(name: str) -> Path:
    """Name a folder that no other run has: `runs/NAME-TIME-HEX`."""
    return RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def write_run_files(folder: Path, config: bytes) -> None:
    """Write config.yaml and provenance.json, unless the run is gone on with: they tell how it began."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        write_atomically(folder / "config.yaml", config)
    if not (folder / "provenance.json").exists():
        write_json(folder / "provenance.json", provenance())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` as indented JSON, whole or not at all."""
    write_atomically(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def provenance() -> dict[str, Any]:
    """What a reader needs to make the run again. No environment variable and no address is among it."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _git(*arguments: str) -> str | None:
    """The answer of git about this source, None where it has no history."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
