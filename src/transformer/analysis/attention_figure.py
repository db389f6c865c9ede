"""What a translation looked at: the cross-attention of each target token over the source, as a picture and a table."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.transformer import EncoderDecoder
from ..data import Tokenizer
from ..generation import beam_search
from .taps import trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PANELS_A_ROW = 4
LABEL_LENGTH = 16  # characters of a token that are shown
TITLE_LENGTH = 110  # characters of a sentence that are shown
_CELL = 0.19  # inches: a label of 7 points, and room around it
_NARROWEST, _WIDEST = 1.5, 9.0  # inches of one panel, beyond which cells grow and shrink
_TOP, _GAP = 0.75, 0.15  # inches above the first panels, and between panels


@dataclass(frozen=True)
class Alignment:
    """Cross-attention of one translation.

    weights: `Float[_ h t s]`, for each decoder layer and head the weight that each source token had when target
    token t was written. `source` and `target` are these tokens as text, the end mark of each included.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: Float[Tensor, "_ h t s"]


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
    ModuleNotFoundError naming the extra to install when matplotlib is missing; the numbers are written even so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alignments = [align(model, tokenizer, sentence) for sentence in sentences]
    paths = [folder / f"attention-{number}.png" for number in range(1, len(sentences) + 1)]
    for alignment, path in zip(alignments, paths, strict=True):
        write_numbers(alignment, path.with_suffix(".json"))
    for alignment, path in zip(alignments, paths, strict=True):
        draw(alignment, path)
    return paths


def write_numbers(alignment: Alignment, path: Path) -> None:
    """Write the tokens and the weights, to four decimals, as JSON; `weights` goes by layer, head, target, source."""
    weights = torch.round(alignment.weights.double(), decimals=4).tolist()
    numbers = {"source": alignment.source, "target": alignment.target, "weights": weights}
    path.write_text(json.dumps(numbers, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(alignment: Alignment, path: Path) -> None:
    """Draw the mean over the heads of every layer, and below it each head of the last layer, as one PNG.

    A row is the target token being written, a column a source token; the darker, the larger the weight.
    """
    with warnings.catch_warnings():  # a character that the font lacks is drawn as a box: no more need be said
        warnings.filterwarnings("ignore", message="Glyph")
        figure_of(alignment).savefig(path, bbox_inches="tight", pad_inches=0.15)


def figure_of(alignment: Alignment) -> Figure:
    """Return the figure that `draw` writes."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figures need matplotlib; install it with: pip install 'transformer-from-scratch[viz]'",
            name=error.name,
        ) from None
    last = len(alignment.weights)
    means = [(f"layer {n}, mean of heads", w.mean(0)) for n, w in enumerate(alignment.weights, start=1)]
    heads = [(f"layer {last}, head {n}", w) for n, w in enumerate(alignment.weights[-1], start=1)]
    rows = [*_rows(means), *_rows(heads)]
    sizes = _Sizes.of(alignment, columns=max(map(len, rows)), rows=len(rows))
    figure = Figure(figsize=(sizes.figure_width, sizes.figure_height), dpi=110)
    for row, panels in enumerate(rows):
        for column, (title, weights) in enumerate(panels):
            axes = figure.add_axes(sizes.panel(row, column))
            image = _draw_panel(axes, title, weights)
            _label(axes, alignment, left=column == 0)
    bar = figure.colorbar(image, cax=figure.add_axes(sizes.bar()), ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("attention weight", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _write_title(figure, alignment, sizes)
    return figure


@dataclass(frozen=True)
class _Sizes:
    """Where everything stands, in inches from the left and from the top."""

    width: float  # of a panel
    height: float
    left: float  # room for the target's tokens
    below: float  # room for the source's tokens
    columns: int
    rows: int

    @classmethod
    def of(cls, alignment: Alignment, columns: int, rows: int) -> _Sizes:
        n_source, n_target = len(alignment.source), len(alignment.target)
        cell = min(_CELL, _WIDEST / max(n_source, n_target))
        left, below = (0.2 + _widest(side) for side in (alignment.target, alignment.source))
        return cls(
            max(_NARROWEST, cell * n_source), max(_NARROWEST, cell * n_target), left, below, columns, rows
        )

    @property
    def figure_width(self) -> float:
        return self.left + self.columns * (self.width + _GAP) + 1.0

    @property
    def figure_height(self) -> float:
        return _TOP + self.rows * (self.height + self.below + 2 * _GAP)

    def panel(self, row: int, column: int) -> tuple[float, float, float, float]:
        """The place of a panel as matplotlib has it: left, bottom, width, height as shares of the figure."""
        bottom = _TOP + row * (self.height + self.below + 2 * _GAP) + self.height
        return self._place(self.left + column * (self.width + _GAP), bottom, self.width, self.height)

    def bar(self) -> tuple[float, float, float, float]:
        """The place of the scale of colours, at the right of the first row."""
        return self._place(
            self.left + self.columns * (self.width + _GAP), _TOP + self.height, 0.14, self.height
        )

    def _place(
        self, left: float, bottom: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        across, down = self.figure_width, self.figure_height
        return left / across, 1 - bottom / down, width / across, height / down


def _widest(labels: Sequence[str]) -> float:
    """Return the width in inches of the widest label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=72)
    FigureCanvasAgg(figure)
    texts = [figure.text(0, 0, _short(label), fontsize=7, parse_math=False) for label in set(labels)]
    return max(text.get_window_extent().width for text in texts) / 72


def _rows(panels: list[tuple[str, Tensor]]) -> list[list[tuple[str, Tensor]]]:
    return [panels[first : first + PANELS_A_ROW] for first in range(0, len(panels), PANELS_A_ROW)]


def _draw_panel(axes: Axes, title: str, weights: Float[Tensor, "t s"]) -> AxesImage:
    """Draw one matrix; the scale of colours is that of square roots, so that weights of a few percent are seen."""
    from matplotlib.colors import PowerNorm

    axes.set_title(title, fontsize=8)
    norm = PowerNorm(0.5, 0, 1)
    return axes.imshow(weights.numpy(), cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")


def _label(axes: Axes, alignment: Alignment, *, left: bool) -> None:
    """Write the source's tokens below a panel and, where no other panel stands there, the target's at its left."""
    axes.set_xticks(range(len(alignment.source)), [_short(token) for token in alignment.source])
    axes.set_yticks(
        range(len(alignment.target)), [_short(token) if left else "" for token in alignment.target]
    )
    axes.tick_params(length=2, labelsize=7)
    axes.tick_params(axis="x", rotation=90)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a dollar sign in a token begins no formula


def _write_title(figure: Figure, alignment: Alignment, sizes: _Sizes) -> None:
    """Say what the columns and the rows are: the two sentences."""
    source, target = (_sentence(tokens) for tokens in (alignment.source, alignment.target))
    x, y = sizes.left / sizes.figure_width, 1 - 0.1 / sizes.figure_height
    figure.text(
        x, y, f"columns, source:  {source}\nrows, target:  {target}", va="top", fontsize=9, parse_math=False
    )


def _sentence(tokens: Sequence[str]) -> str:
    text = "".join(tokens[:-1]).replace("▁", " ").strip()
    return text if len(text) <= TITLE_LENGTH else text[: TITLE_LENGTH - 1] + "…"


def _short(label: str) -> str:
    return label if len(label) <= LABEL_LENGTH else label[: LABEL_LENGTH - 1] + "…"


def _labels(tokenizer: Tokenizer, tokens: Tensor) -> tuple[str, ...]:
    """Each token as text in which a blank is `▁`; bytes that are no whole character, and such, are `�`."""
    special = {tokenizer.pad: "⟨pad⟩", tokenizer.bos: "⟨bos⟩", tokenizer.eos: "⟨eos⟩"}

    def show(token: int) -> str:
        text = tokenizer.token_bytes(token).decode("utf-8", errors="replace").replace(" ", "▁")
        return "".join(c if c.isprintable() else "�" for c in text)

    return tuple(special.get(token) or show(token) for token in tokens.tolist())
