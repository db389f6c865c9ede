"""Does mixture of depths reach the loss of its baseline at fewer operations? Tiny Shakespeare, a small GPT.

    python -m experiments.studies.mixture_of_depths runs/mixture_of_depths --seeds 0 1 2

The baseline is `configs/gpt_shakespeare.yaml`. `mod` lets an eighth of the tokens through its second and fourth block;
`mod long` does so for as many more steps as cost what the baseline costs; `two blocks` and `three blocks` are plain
models that save operations by having fewer blocks. The loss is that of the causal rule, on the whole validation split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.studies.arms import main, mean_with_interval, results, table
from transformer.analysis.cost import Shape, count_flops
from transformer.models import ModelConfig
from transformer.run import read_run

CONFIG = ("--config", "configs/gpt_shakespeare.yaml")
LONG = 3490  # steps that cost what the 2,000 of the baseline cost
ARMS = {
    "baseline": CONFIG,
    "mod": (*CONFIG, "--model.use_mixture_of_depths", "true"),
    "mod long": (*CONFIG, "--model.use_mixture_of_depths", "true", "--training.max_steps", str(LONG)),
    "two blocks": (*CONFIG, "--model.n_layers", "2"),
    "three blocks": (*CONFIG, "--model.n_layers", "3"),
}


def architecture(arm: str) -> tuple[ModelConfig, int]:
    """The arm's model, and its number of steps."""
    config, _ = read_run([Path(ARMS[arm][1])], ARMS[arm][2:])
    return config.model.architecture(68)[0], config.training.max_steps


def report(folder: Path, seeds: Sequence[int]) -> str:
    """Loss and operations of each arm, and its difference from the baseline, seed by seed."""
    rows = {}
    base = [results(folder, "baseline", seed)["val/loss"] for seed in seeds]
    base_cost = _operations("baseline")
    for arm in ARMS:
        found = [results(folder, arm, seed) for seed in seeds]
        losses = [one["val/loss"] for one in found]
        differences = [loss - other for loss, other in zip(losses, base, strict=True)]
        rows[arm] = {
            "validation loss": mean_with_interval(losses, 4),
            "minus the baseline's": "" if arm == "baseline" else mean_with_interval(differences, 4),
            "operations per token": f"{_operations(arm)[0] / base_cost[0]:.2f}",
            "operations of training": f"{_operations(arm)[1] / base_cost[1]:.2f}",
        }
    return table(rows)


def _operations(arm: str) -> tuple[float, float]:
    """Of the forward pass, per token, and of the whole training, in units of a batch."""
    config, steps = architecture(arm)
    per_token = count_flops(config, Shape(12, 64)).forward_per_token
    return per_token, per_token * steps


if __name__ == "__main__":
    main(__doc__ or "", ARMS, report)
