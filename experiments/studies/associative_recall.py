"""Which mixers recall, and at which width? Multi-query associative recall with attention, Mamba and S4D.

    python -m experiments.studies.associative_recall runs/associative_recall --seeds 0 1 2

The task of Zoology (arXiv 2312.04927) in small: eight pairs of a key and a value, then each key once more, in 64
places. Every model has two layers of one kind of mixer and no feed-forward network, as there, and is trained by
`configs/associative_recall.yaml` on the same problems for the same number of steps. Both learning rates are tried with
each mixer at width 32 and the first seed, and the better one is that mixer's for all widths and seeds. The table of
docs/results/associative_recall.md is printed, and its figure is written beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.studies.arms import draw, main, mean_with_interval, results, table, train
from transformer.models import build
from transformer.run import read_run

FIGURE = Path(__file__).resolve().parents[2] / "docs" / "results" / "associative_recall.svg"
CONFIG = ("--config", "configs/associative_recall.yaml")
MIXERS: dict[str, tuple[str, ...]] = {
    "attention": (),
    "Mamba": ("--model.layers", "[mamba]", "--model.rope_base", "null"),
    "S4D": ("--model.layers", "[s4d]", "--model.rope_base", "null"),
}
RATES = ("1.0e-2", "3.0e-3")
WIDTHS = (16, 32, 64)


def arm(mixer: str, width: int, rate: str = RATES[0]) -> tuple[str, ...]:
    """The arguments of `transformer train` for a mixer at a width."""
    sizes = ("--model.d_model", str(width), "--schedule.learning_rate", rate)
    return (*CONFIG, *sizes, *MIXERS[mixer])


def arms(folder: Path, seeds: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """Every mixer at every width, at the rate that a trial found better."""
    trials = {f"{mixer} at {rate}": arm(mixer, 32, rate) for mixer in MIXERS for rate in RATES}
    train(folder, trials, seeds[:1])

    def accuracy(mixer: str, rate: str) -> float:
        return float(results(folder, f"{mixer} at {rate}", seeds[0])["val/accuracy"])

    rates = {mixer: max(RATES, key=partial(accuracy, mixer)) for mixer in MIXERS}
    return {f"{mixer} {width}": arm(mixer, width, rates[mixer]) for width in WIDTHS for mixer in MIXERS}


def weights(mixer: str, width: int) -> int:
    """How many weights the model has."""
    _, file, *overrides = arm(mixer, width)
    config, _ = read_run([file], overrides)
    symbols = config.data.load().tokenizer.vocab_size
    return sum(p.numel() for p in build(config.model.architecture(symbols)[0]).parameters())


def report(folder: Path, seeds: Sequence[int]) -> str:
    """Accuracy of each mixer at each width; the figure is drawn on the way."""
    found = {
        mixer: {
            width: [results(folder, f"{mixer} {width}", s)["val/accuracy"] for s in seeds] for width in WIDTHS
        }
        for mixer in MIXERS
    }
    draw(FIGURE, found, "width of the model", "right answers")
    rows = {
        mixer: {
            f"d {width}": f"{mean_with_interval(values)} ({weights(mixer, width):,})"
            for width, values in places.items()
        }
        for mixer, places in found.items()
    }
    return table(rows)


if __name__ == "__main__":
    main(__doc__ or "", arms, report)
