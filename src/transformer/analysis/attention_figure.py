"""What a translation looked at: the cross-attention of each target token over the source, as a picture and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.transformer import EncoderDecoder
from ..data import Tokenizer
from ..generation import beam_search
from .taps import trace

HEADS_A_ROW = 4


@dataclass(frozen=True)
class Alignment:
    """Cross-attention of one translation.

    weights: `Float[l h t s]`, for each layer and head the weight that target token t gives source token s when
    the token after t is predicted; `target` lists those predicted tokens.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: Float[Tensor, "l h t s"]


def align(model: EncoderDecoder, tokenizer: Tokenizer, sentence: str) -> Alignment:
    """Translate a sentence greedily and read what each decoder layer's cross-attention gave the source."""
    device = next(model.parameters()).device
    source = torch.tensor([[*tokenizer.encode(sentence), tokenizer.eos]], device=device)
    bos, eos, pad = tokenizer.bos, tokenizer.eos, tokenizer.pad
    target = beam_search(model, source, beam_size=1, bos=bos, eos=eos, pad=pad)
    read = torch.cat([target.new_tensor([[bos]]), target[:, :-1]], dim=1)
    taps = trace(model, source, read, taps="decoder.*.cross_attention.branch.weights")
    weights = torch.stack([weights[0].float().cpu() for weights in taps.values()])
    return Alignment(_labels(tokenizer, source[0]), _labels(tokenizer, target[0]), weights)


def draw_translations(
    model: EncoderDecoder, tokenizer: Tokenizer, sentences: Sequence[str], folder: Path
) -> list[Path]:
    """Translate the sentences and draw their cross-attention, `attention-1.png` and so on, into `folder`.

    Beside each picture lies a `.json` with its numbers, for those who would rather compute or cannot see it.
    ModuleNotFoundError naming the extra to install when matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, sentence in enumerate(sentences, start=1):
        alignment = align(model, tokenizer, sentence)
        path = folder / f"attention-{number}.png"
        draw(alignment, path)
        rounded = [
            [[[round(w, 4) for w in row] for row in head] for head in layer]
            for layer in alignment.weights.tolist()
        ]
        numbers = {
            "source": alignment.source,
            "target": alignment.target,
            "weights[layer][head][target][source]": rounded,
        }
        path.with_suffix(".json").write_text(json.dumps(numbers, ensure_ascii=False) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def draw(alignment: Alignment, path: Path) -> None:
    """Draw the mean over heads of the last layer large, and each of its heads small, as one PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figures need matplotlib; install it with: pip install 'transformer-from-scratch[viz]'",
            name=error.name,
        ) from None
    n_layers, n_heads = alignment.weights.shape[:2]
    rows = -(-n_heads // HEADS_A_ROW)
    n_source, n_target = len(alignment.source), len(alignment.target)
    width, height = max(4.0, 0.34 * n_source + 1.6), max(3.2, 0.3 * n_target + 1.4)
    figure = Figure(figsize=(width * 1.9, max(height, 1.6 * rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    large, small = list(figure.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 0.9))[0])
    axes = large.subplots()
    image = _matrix(
        axes, alignment.weights[-1].mean(0), alignment, f"layer {n_layers}, mean of {n_heads} heads"
    )
    large.colorbar(image, ax=axes, shrink=0.6, label="attention weight")
    grid = small.subplots(rows, HEADS_A_ROW, squeeze=False)
    for index, panel in enumerate(grid.flat):
        if index >= n_heads:
            panel.set_visible(False)
            continue
        panel.imshow(alignment.weights[-1, index], cmap="cividis", vmin=0, vmax=1, aspect="auto")
        panel.set_title(f"head {index + 1}", fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
    figure.savefig(path)


def _matrix(axes: Any, weights: Float[Tensor, "t s"], alignment: Alignment, title: str) -> Any:
    """Draw one matrix with the tokens at its sides."""
    image = axes.imshow(weights, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(
        range(len(alignment.source)), _plain(alignment.source), rotation=60, ha="right", fontsize=8
    )
    axes.set_yticks(range(len(alignment.target)), _plain(alignment.target), fontsize=8)
    axes.set_xlabel("source token")
    axes.set_ylabel("target token written")
    axes.set_title(title, fontsize=9)
    return image


def _labels(tokenizer: Tokenizer, tokens: Tensor) -> tuple[str, ...]:
    """Each token as text; a blank that it begins with is shown as an underscore."""
    labels = []
    for token in tokens.tolist():
        text = tokenizer.token_bytes(token).decode("utf-8", errors="replace")
        labels.append("end" if token == tokenizer.eos else text.replace(" ", "_"))
    return tuple(labels)


def _plain(labels: Sequence[str]) -> list[str]:
    """Labels that matplotlib shows as they are: a dollar sign would begin a formula."""
    return [label.replace("$", r"\$") for label in labels]
