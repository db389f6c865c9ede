"""Does pretraining help? BERT on SST-2, or on AG News, with and without what it learned from WikiText-2.

    python experiments/studies/bert_pretraining.py runs/bert_pretraining --wikitext DIR --sst2 DIR --seeds 0 1 2

The one DIR holds `train.txt`, `valid.txt`, `test.txt`, the other `train.tsv`, `dev.tsv` and perhaps `test.tsv`,
all of them compressed or not. BERT is trained on hidden tokens once, as in configs/bert_wikitext2.yaml. Then, for each
seed, it is fine-tuned twice by one recipe, configs/bert_sst2.yaml: beginning with those weights, and with random ones.
The tokenizer, the data and their order are the same. Runs that are finished are not repeated; at the end the table of
docs/results/bert.md is printed. `--ag_news DIR`, with `train.csv` and `test.csv`, does the same for AG News.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a two-sided interval of 95 %, by the number of runs."""


def train(run: Path, config: str, *overrides: str) -> None:
    """Train a run, unless it is finished."""
    if (run / "results.json").exists():
        return
    command = [sys.executable, "-m", "transformer", "train", "--config", config, "--output.dir", str(run)]
    with run.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run([*command, *overrides], stdout=log, stderr=log, check=True)


def pretrain(run: Path, wikitext: Path, cache: Path) -> Path:
    """Train on hidden tokens; return the tokenizer's file."""
    names = {"path": "train.txt", "validation": "valid.txt", "test": "test.txt"}
    overrides = [part for key, name in names.items() for part in (f"--data.{key}", str(wikitext / name))]
    train(run, "configs/bert_wikitext2.yaml", *overrides, "--data.cache", str(cache))
    return next((run / "export" / "checkpoints").glob("step-*/tokenizer.json"))


def fine_tune(folder: Path, name: str, data: Path, seeds: list[int], tokenizer: Path) -> None:
    """Train each seed with and without the weights learned before."""
    common = ["--data.path", str(data), "--data.cache", str(folder / "cache")]
    if name == "sst2" and any((data / f"test.tsv{end}").exists() for end in ("", ".gz")):
        common += ["--data.test", "test.tsv"]
    if name == "ag_news" and not any((data / f"train.csv{end}").exists() for end in ("", ".gz")):
        common += ["--data.train", "train_5k.csv"]  # a part of the training file that goes by this name
    for seed in seeds:
        chosen = [*common, "--training.seed", str(seed)]
        config = f"configs/bert_{name}.yaml"
        pretrained = ["--model.init_from", str(folder / "pretrained")]
        train(folder / f"{name}-pretrained-{seed}", config, *chosen, *pretrained)
        saved = ["--data.tokenizer.kind", "saved", "--data.tokenizer.path", str(tokenizer)]
        train(folder / f"{name}-random-{seed}", config, *chosen, *saved)


def mean_with_interval(values: list[float]) -> str:
    """The mean, and the half-width of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = T_975[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def table(folder: Path, name: str, seeds: list[int]) -> str:
    """Accuracies in per cent, and their differences, as Markdown."""
    found: dict[str, dict[str, list[float]]] = {"pretrained": {}, "random": {}}
    for weights, figures in found.items():
        for seed in seeds:
            results = json.loads((folder / f"{name}-{weights}-{seed}" / "results.json").read_text("utf-8"))
            for key in ("val/accuracy", "test/accuracy"):
                if key in results:
                    figures.setdefault(key.partition("/")[0], []).append(100 * results[key])
    splits = list(found["random"])
    lines = [f"| seed | first weights | {' | '.join(splits)} |", f"|---|---|{'---|' * len(splits)}"]
    for index, seed in enumerate(seeds):
        for weights, figures in found.items():
            lines.append(f"| {seed} | {weights} | {' | '.join(f'{figures[s][index]:.2f}' for s in splits)} |")
    for weights, figures in found.items():
        lines.append(f"| mean | {weights} | {' | '.join(mean_with_interval(figures[s]) for s in splits)} |")
    gains = {
        s: [a - b for a, b in zip(found["pretrained"][s], found["random"][s], strict=True)] for s in splits
    }
    lines.append(f"| mean | difference | {' | '.join(mean_with_interval(gains[s]) for s in splits)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--sst2", type=Path)
    parser.add_argument("--ag_news", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = pretrain(options.folder / "pretrained", options.wikitext, options.folder / "cache")
    for name, data in (("sst2", options.sst2), ("ag_news", options.ag_news)):
        if data is not None:
            fine_tune(options.folder, name, data, options.seeds, tokenizer)
            sys.stdout.write(f"{name}\n\n{table(options.folder, name, options.seeds)}\n\n")


if __name__ == "__main__":
    main()
