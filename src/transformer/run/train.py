"""Training from a configuration: build everything, train, evaluate, and leave it all in the run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..analysis.attention_figure import draw_translations
from ..analysis.cost import count_parameters
from ..base.transformer import EncoderDecoder
from ..data import ParallelCorpus, TextCorpus, TextData
from ..evaluation import Report, evaluate_pairs, evaluate_text, report
from ..generation import Sampling, continue_text, translate
from ..interop import model_file
from ..models import DecoderOnly, Model, build
from ..training.average import average_checkpoints
from ..training.checkpoint import CheckpointStore
from ..training.config import TrainingResult
from ..training.loop import Trainer
from ..training.objective import Causal, SequenceToSequence
from ..training.progress import Mode, Progress
from ..utils.layering import dump_yaml
from ..utils.rng import derive_seed
from .config import NOWHERE, OutputConfig, RunConfig, encode_run, located, require_memory
from .folder import new_folder, write_json, write_run_files

Corpus = ParallelCorpus | TextCorpus


@dataclass(frozen=True)
class Parts:
    """What a configuration describes, built: data, model, objective."""

    config: RunConfig
    corpus: Corpus
    model: Model
    objective: Any

    @property
    def split(self) -> str:
        """The split of the final figures."""
        return self.config.evaluation.split or ("test" if "test" in self.corpus.splits else "validation")

    def files(self) -> dict[str, bytes]:
        """The files that make a checkpoint complete: with them it is a model that can be used anywhere."""
        return {
            "config.yaml": dump_yaml(encode_run(self.config)).encode(),
            "model.json": model_file(self.model),
            "tokenizer.json": self.corpus.tokenizer.to_bytes(),
        }

    def fingerprints(self) -> dict[str, str]:
        """What must be the same for a run to be resumed: all that decides its numbers, except its length."""
        plain = encode_run(self.config)
        decisive = {key: plain[key] for key in ("model", "data", "objective", "optimizer", "schedule")}
        decisive["data"] = {
            key: value for key, value in plain["data"].items() if key not in ("path", "cache")
        }
        training = {
            key: plain["training"][key] for key in ("precision", "accumulate", "clip_norm", "ema_decay")
        }
        text = json.dumps({**decisive, "training": training}, sort_keys=True)
        config = hashlib.sha256(text.encode()).hexdigest()
        return {"config": config, "tokenizer": self.corpus.tokenizer.fingerprint}


def build_parts(config: RunConfig, origin: Mapping[str, str] = NOWHERE) -> Parts:
    """Prepare the data and build the model, its first weights drawn from the run's seed.

    Raises `ConfigError`, naming the section and where it was written (`origin`), for data that cannot be used and for
    a model that would not fit the machine's memory.
    """
    with located("data", origin):
        corpus = config.data.load()
        corpus.stream(
            config.training.seed
        )  # refuses data that do not fit the settings, such as too long a context
    objective = config.objective or (SequenceToSequence() if isinstance(corpus, ParallelCorpus) else Causal())
    if isinstance(objective, SequenceToSequence):
        objective = replace(objective, pad_id=corpus.tokenizer.pad)
    with located("model", origin):
        architecture, execution = config.model.architecture(corpus.tokenizer.vocab_size)
        require_memory(architecture)
    torch.manual_seed(derive_seed(config.training.seed, "init"))
    model = build(architecture, config.execution.apply(execution)).to(
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    with located("model", origin):
        require_length(model, corpus, config)
    return Parts(config, corpus, model, objective)


def require_length(model: Model, corpus: Corpus, config: RunConfig) -> None:
    """Refuse data longer than the model can number, before training instead of in the middle of it."""
    stack = model.decoder if isinstance(model, EncoderDecoder) else model.stack
    limit, longest = stack.position.max_seq_len, 0
    if isinstance(config.data, TextData):
        longest = config.data.context
    elif isinstance(corpus, ParallelCorpus):
        for split in corpus.splits:
            widths = np.maximum(*corpus.pairs(split).widths())
            kept = widths[widths <= config.data.max_length] if split == "train" else widths
            longest = max(longest, int(kept.max(initial=0)))
    if limit is not None and longest > limit:
        raise ValueError(
            f"max_seq_len {limit} is less than the {longest} tokens of the longest sequence in the data; "
            f"set model.max_seq_len: {longest} or more"
        )


@dataclass(frozen=True)
class Outcome:
    """How a run ended. exit_code: 0 finished, 130 or 143 interrupted and saved. figures: as in results.json."""

    folder: Path
    exit_code: int
    figures: Mapping[str, float]


def train(
    config: RunConfig,
    console: Console,
    *,
    mode: Mode = "auto",
    name: str = "run",
    origin: Mapping[str, str] = NOWHERE,
) -> Outcome:
    """Train as configured, evaluate, and leave everything in the run folder.

    A folder that holds checkpoints of the same run is gone on with, bit for bit; `name` begins the name of a new one.
    """
    folder = Path(config.output.dir) if config.output.dir else new_folder(name)
    parts = build_parts(replace(config, output=OutputConfig(str(folder))), origin)
    with Progress(console, mode, log=folder / "console.log") as progress:
        n_parameters = count_parameters(parts.model)
        progress.message(
            f"{folder}: {config.model.kind}, {n_parameters:,} parameters, {_describe(parts.corpus)}"
        )
        trainer = _trainer(parts, folder, progress)
        result = trainer.run()
        if result.interrupted_by is not None:
            progress.summary(_shown(result), folder, f"transformer train --config {folder / 'config.yaml'}")
            return Outcome(folder, result.exit_code, {})
        figures = _finish(parts, trainer, result, progress)
    return Outcome(folder, 0, figures)


def _describe(corpus: Corpus) -> str:
    """Say how much data there is to train on."""
    counts = corpus.counts["train"]
    return ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)


def _trainer(parts: Parts, folder: Path, progress: Progress) -> Trainer[Any]:
    config = parts.config
    trainer = Trainer(
        parts.model,
        parts.objective,
        config.optimizer,
        config.schedule.build(d_model=parts.model.config.d_model, max_steps=config.training.max_steps),
        parts.corpus.stream(config.training.seed),
        config.training,
        folder,
        progress=progress,
        evaluate=lambda model, step: validate(parts),
        sample=lambda model, step: write_sample(parts),
        files=parts.files(),
        fingerprints=parts.fingerprints(),
    )
    write_run_files(folder, parts.files()["config.yaml"])
    return trainer


def validate(parts: Parts) -> dict[str, float]:
    """The unsmoothed loss on the whole validation split, in nats per token, and what follows from it."""
    if isinstance(parts.corpus, ParallelCorpus):
        pairs = evaluate_pairs(parts.model, parts.corpus.evaluation("validation"))
        return {"val/loss": pairs.nats_per_token, "val/perplexity": pairs.perplexity}
    text = evaluate_text(parts.model, parts.corpus.evaluation("validation"))
    return {"val/loss": text.nats_per_token, "val/perplexity": text.perplexity, "val/bpb": text.bits_per_byte}


def write_sample(parts: Parts) -> str:
    """Something that the model writes now, to be looked at: two translations, or a continued prompt."""
    corpus, model, config = parts.corpus, parts.model, parts.config
    if isinstance(model, EncoderDecoder) and isinstance(corpus, ParallelCorpus):
        sources = [source for source, _ in corpus.sentences("validation")[:2]]
        written = translate(model, corpus.tokenizer, sources, beam_size=1)
        return "\n".join(f"  {source}\n  → {text}" for source, text in zip(sources, written, strict=True))
    assert isinstance(model, DecoderOnly)
    sampling = Sampling(seed=config.training.seed)
    return continue_text(
        model, corpus.tokenizer, config.evaluation.prompt, config.evaluation.sample_tokens, sampling
    )


def _finish(
    parts: Parts, trainer: Trainer[Any], result: TrainingResult, progress: Progress
) -> dict[str, float]:
    """Evaluate the weights that the run is judged by, and save them, the figures and the pictures."""
    config, folder = parts.config, trainer.folder
    weights, origin = _final_weights(trainer, config.evaluation.average_checkpoints)
    parts.model.load_state_dict({**parts.model.state_dict(), **weights})
    parts.model.eval()
    final = evaluate_parts(parts, parts.split)
    figures = {**_figures(result), **final.figures}
    CheckpointStore(folder / "export", keep_last=1).save(
        result.step,
        tensors={"model": parts.model.state_dict()},
        state={"weights": origin},
        files=parts.files(),
    )
    notes = {**final.notes, "weights": origin}
    write_json(folder / "results.json", {**figures, "notes": notes})
    _show_examples(parts, final, folder, progress)
    shown = {name: f"{value:.2f}" for name, value in final.figures.items()}
    progress.summary({**_shown(result), **shown, **notes}, folder, _next_command(parts, folder))
    return figures


def _final_weights(trainer: Trainer[Any], n_checkpoints: int) -> tuple[dict[str, Tensor], str]:
    """The weights a run is judged by, and in words which they are."""
    if n_checkpoints > 1:
        steps = trainer.store.steps()[-n_checkpoints:]
        stored = (trainer.store.open(step).tensors("model") for step in steps)
        return average_checkpoints(stored), f"mean of the checkpoints of steps {', '.join(map(str, steps))}"
    if trainer.average is not None:
        return dict(trainer.average.tensors), f"moving average, decay {trainer.average.decay}"
    return {}, "those of the last step"


def evaluate_parts(parts: Parts, split: str) -> Report:
    """Report on a split as the run's configuration says."""
    options = parts.config.evaluation
    return report(
        parts.model,
        parts.corpus,
        split,
        beam_size=options.beam_size,
        length_penalty=options.length_penalty,
        samples=options.samples,
    )


def _show_examples(parts: Parts, final: Report, folder: Path, progress: Progress) -> None:
    """Show translations beside those of people, with figures of what the model looked at; or a text."""
    if not isinstance(parts.model, EncoderDecoder):
        progress.message(write_sample(parts))
        return
    for example in final.translations:
        progress.message(f"  source     {example.source}")
        progress.message(f"  reference  {example.reference}")
        progress.message(f"  model      {example.hypothesis}\n")
    sentences = [example.source for example in final.translations[: parts.config.evaluation.figures]]
    try:
        drawn = draw_translations(parts.model, parts.corpus.tokenizer, sentences, folder / "figures")
    except ModuleNotFoundError as error:
        progress.warning(str(error))
    else:
        progress.message(f"cross-attention of {len(drawn)} translations: {folder / 'figures'}")


def _figures(result: TrainingResult) -> dict[str, float]:
    """The figures of the training itself, for results.json."""
    figures = {
        "train/loss": result.train_loss,
        "train/nll": result.train_nll,
        "perf/tokens_per_second": result.tokens_per_second,
        "perf/train_seconds": result.seconds,
        "mem/peak_bytes": result.peak_bytes,
        "step": result.step,
        **result.evaluation,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _shown(result: TrainingResult) -> dict[str, str]:
    """The figures of the training itself, for people."""
    shown = {
        "steps": f"{result.step:,}",
        "training time": f"{result.seconds:.0f} s",
        "tokens/s": f"{result.tokens_per_second:,.0f}",
        "peak memory": f"{result.peak_bytes / 2**20:,.0f} MiB",
    }
    losses = {"train loss": result.train_loss, "validation loss": result.evaluation.get("val/loss")}
    return {**{name: f"{loss:.4f}" for name, loss in losses.items() if loss is not None}, **shown}


def _next_command(parts: Parts, folder: Path) -> str:
    """A command worth typing now."""
    if isinstance(parts.corpus, ParallelCorpus):
        return f'transformer translate {folder} "{parts.corpus.sentences("validation")[0][0]}"'
    return f'transformer generate {folder} "{parts.config.evaluation.prompt.strip() or "O"}"'
