"""Does what came after 2017 help? `configs/enhanced_transformer.yaml` against `configs/base_transformer.yaml`.

    python experiments/studies/enhanced_against_base.py runs/enhanced_against_base --seeds 0 1 2

For each seed both are trained side by side, in two processes of one thread each, so that whatever else the machine
does slows both alike. The two have the same data, batches, vocabulary and number of parameters (to 0.1 %), and the
enhanced one's number of steps is set so that it takes no longer. Runs that are finished are not repeated. At the end
the table of docs/results/enhanced_transformer.md is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

CONFIGS = {"base": "configs/base_transformer.yaml", "enhanced": "configs/enhanced_transformer.yaml"}
COLUMNS = {
    "validation nll": "val/loss",
    "test nll": "test/nll",
    "BLEU": "test/bleu",
    "seconds": "perf/train_seconds",
}
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t for a two-sided interval of 95 %, by the number of runs."""


def train_side_by_side(folder: Path, seed: int) -> None:
    """Train what is not finished of this seed's pair."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = []
    for name, config in CONFIGS.items():
        run = folder / f"{name}-{seed}"
        if (run / "results.json").exists():
            continue
        command = [sys.executable, "-m", "transformer", "train", "--config", config]
        command += ["--training.seed", str(seed), "--output.dir", str(run)]
        log = (folder / f"{name}-{seed}.log").open("w", encoding="utf-8")
        running.append((run, subprocess.Popen(command, env=environment, stdout=log, stderr=log)))
    for run, process in running:
        if process.wait():
            raise SystemExit(f"{run} failed; see {run}.log")


def mean_with_interval(values: list[float]) -> str:
    """The mean, and the half-width of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = T_975[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(folder: Path, seeds: list[int]) -> str:
    """The results of all pairs, and of their differences, as Markdown."""
    lines = [f"| seed | model | {' | '.join(COLUMNS)} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    found: dict[str, list[list[float]]] = {name: [] for name in CONFIGS}
    for seed in seeds:
        for name in CONFIGS:
            results = json.loads((folder / f"{name}-{seed}" / "results.json").read_text(encoding="utf-8"))
            values = [float(results[key]) for key in COLUMNS.values()]
            found[name].append(values)
            lines.append(f"| {seed} | {name} | {' | '.join(f'{value:.3f}' for value in values)} |")
    for name, rows in found.items():
        cells = [mean_with_interval(list(column)) for column in zip(*rows, strict=True)]
        lines.append(f"| mean | {name} | {' | '.join(cells)} |")
    pairs = zip(found["enhanced"], found["base"], strict=True)
    differences = [[a - b for a, b in zip(first, second, strict=True)] for first, second in pairs]
    cells = [mean_with_interval(list(column)) for column in zip(*differences, strict=True)]
    lines.append(f"| mean | enhanced − base | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        train_side_by_side(options.folder, seed)
    sys.stdout.write(table(options.folder, options.seeds) + "\n")


if __name__ == "__main__":
    main()
