"""What the studies share: train every arm with every seed, each run in a process of one thread, and compare.

An arm is a name and the arguments of `transformer train`. Two runs go side by side, so that whatever else the machine
does slows both alike. Runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t for a two-sided interval of 95 %, by the number of runs."""

Arms = Mapping[str, Sequence[str]]


def results(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """The figures of a finished run."""
    loaded: dict[str, Any] = json.loads(
        (folder / f"{arm}-{seed}" / "results.json").read_text(encoding="utf-8")
    )
    return loaded


def train(folder: Path, arms: Arms, seeds: Sequence[int]) -> None:
    """Train what is not finished, the arms of a seed one after the other, two at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def run(arm: str, seed: int) -> None:
        place = folder / f"{arm}-{seed}"
        if (place / "results.json").exists():
            return
        command = [sys.executable, "-m", "transformer", "train", *arms[arm]]
        command += ["--training.seed", str(seed), "--output.dir", str(place)]
        with (folder / f"{arm}-{seed}.log").open("w", encoding="utf-8") as log:
            if subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode:
                raise SystemExit(f"{place} failed; see {place}.log")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run, arm, seed) for seed in seeds for arm in arms]:
            done.result()


def mean_with_interval(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and the half-width of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    half = T_975[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


def draw(path: Path, lines: Mapping[str, Mapping[float, Sequence[float]]], x: str, y: str) -> None:
    """Draw the mean of each line at each place, and every run as a dot; repeated calls write the same file."""
    import matplotlib.pyplot as plt

    markers = ("o", "s", "^", "D", "v", "P")
    with plt.rc_context({"svg.hashsalt": path.stem, "font.size": 9}):
        figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
        for marker, (name, places) in zip(markers, lines.items(), strict=False):
            means = [statistics.mean(values) for values in places.values()]
            (line,) = axes.plot(list(places), means, marker=marker, label=name)
            for place, values in places.items():
                axes.plot([place] * len(values), values, ".", color=line.get_color(), alpha=0.4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(
            list(next(iter(lines.values()))), [f"{place:g}" for place in next(iter(lines.values()))]
        )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Rows of cells by column as Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(cells.values())} |" for name, cells in rows.items()]
    return "\n".join(lines)


def main(
    doc: str,
    arms: Arms | Callable[[Path, Sequence[int]], Arms],
    report: Callable[[Path, Sequence[int]], str],
) -> None:
    """The command line of a study: train, then print its table. Arms may depend on trials, which they then train."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    chosen = arms(options.folder, options.seeds) if callable(arms) else arms
    train(options.folder, chosen, options.seeds)
    sys.stdout.write(report(options.folder, options.seeds) + "\n")
