"""How much memory a call takes at its peak, as the system counts it; Linux alone tells.

Run as a script with the paths of models, it prints for each what loading it took, over what the model itself takes.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return STATUS.exists()


def peak_during(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes by which the process grew at most, and what the call returned."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory, which the call could use again unseen, goes back
    CLEAR.write_text("5")  # the high-water mark begins anew
    before = _kilobytes("VmRSS")
    found = call()
    return 1024 * (_kilobytes("VmHWM") - before), found


def _kilobytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def main() -> None:
    import torch

    from transformer import load

    torch.set_num_threads(1)
    warm_up, *paths = sys.argv[1:]
    load(warm_up)
    for path in paths:
        peak, model = peak_during(lambda path=path: load(path))
        size = sum(parameter.nbytes for parameter in model.parameters())
        sys.stdout.write(f"{path}\t{size}\t{peak / size:.3f}\n")
        del model


if __name__ == "__main__":
    main()
