"""Who can choose what to keep? Selective copying with Mamba and with S4D, in which no token has a say.

    python -m experiments.studies.selective_copying runs/selective_copying --seeds 0 1 2

The task of Mamba's §4.1.1 (arXiv 2312.00752) in small: eight symbols among 56 blanks at places that differ, to be told
in their order. Both models have two layers of width 64 and are trained by `configs/selective_copying.yaml` on the same
problems for the same number of steps. S4D is also favoured: with as many weights as Mamba, and the higher learning rate
that suits it. Then all are examined at other lengths too. The table of docs/results/selective_copying.md is printed,
and its figure is written beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.studies.arms import draw, main, mean_with_interval, results, table

FIGURE = Path(__file__).resolve().parents[2] / "docs" / "results" / "selective_copying.svg"
CONFIG = ("--config", "configs/selective_copying.yaml")
BLIND = (*CONFIG, "--model.layers", "[s4d]")
FAVOURED = ("--model.d_model", "98", "--schedule.learning_rate", "1.0e-2")  # as many weights as Mamba has
ARMS = {"Mamba": CONFIG, "S4D": BLIND, "S4D, favoured": (*BLIND, *FAVOURED)}
LENGTHS = (32, 64, 128, 256)


def report(folder: Path, seeds: Sequence[int]) -> str:
    """Right answers and solved problems at each length; the figure is drawn on the way."""
    found = {
        arm: {
            length: [results(folder, arm, seed)[f"test/{length}/accuracy"] for seed in seeds]
            for length in LENGTHS
        }
        for arm in ARMS
    }
    draw(FIGURE, found, "blanks and symbols (trained at 64)", "right answers")
    rows = {}
    for arm, places in found.items():
        solved = [results(folder, arm, seed)["test/64/solved"] for seed in seeds]
        cells = {f"answers at {length}": mean_with_interval(values) for length, values in places.items()}
        rows[arm] = {"whole problems at 64": mean_with_interval(solved), **cells}
    return table(rows)


if __name__ == "__main__":
    main(__doc__ or "", ARMS, report)
