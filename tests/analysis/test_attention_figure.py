"""Figures of cross-attention: what they show is what the model did, and it can be read."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from transformer import Transformer
from transformer.analysis import trace
from transformer.analysis.attention_figure import Alignment, align, draw, draw_translations, figure_of
from transformer.base.transformer import EncoderDecoder
from transformer.data import ByteTokenizer, CharacterTokenizer

ALPHABET = "abcdefgh $_"


def small(layers: int = 2, heads: int = 3) -> tuple[EncoderDecoder, CharacterTokenizer]:
    tokenizer = CharacterTokenizer(ALPHABET)
    dims = {"d_model": 24, "n_heads": heads, "n_layers": layers, "max_seq_len": 64}
    return Transformer(tokenizer.vocab_size, **dims), tokenizer  # type: ignore[arg-type]


def alignment(source: list[str], target: list[str], layers: int = 2, heads: int = 3) -> Alignment:
    weights = torch.randn(layers, heads, len(target), len(source)).mul(3).softmax(-1)
    return Alignment(tuple(source), tuple(target), weights)


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


# ---------------------------------------------------------------- the numbers


def test_an_alignment_is_the_attention_that_wrote_the_translation() -> None:
    model, tokenizer = small()
    found = align(model, tokenizer, "abc $h")
    assert found.source == ("a", "b", "c", "▁", "$", "h", "⟨eos⟩")
    assert found.target[-1] == "⟨eos⟩" and found.weights.shape == (2, 3, len(found.target), 7)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, 3, len(found.target)))
    marks = {"▁": " "}
    written = [tokenizer.encode(marks.get(t, t))[0] for t in found.target[:-1] if not t.startswith("⟨")]
    assert len(written) == len(found.target) - 1
    source = torch.tensor([[*tokenizer.encode("abc $h"), tokenizer.eos]])
    seen = trace(model, source, torch.tensor([[tokenizer.bos, *written]]))
    assert seen["lm_head"][0, :-1].argmax(-1).tolist() == written  # row t is where token t was chosen
    for layer in range(2):
        expected = seen[f"decoder.blocks.{layer}.cross_attention.branch.weights"][0]
        torch.testing.assert_close(found.weights[layer], expected)


def test_bytes_that_are_no_character_have_a_label_all_the_same() -> None:
    tokenizer = ByteTokenizer()
    model = Transformer(tokenizer.vocab_size, 16, 2, 1)
    found = align(model, tokenizer, "ä\n")
    assert found.source == ("�", "�", "�", "⟨eos⟩")


def test_pictures_lie_beside_their_numbers(tmp_path: Path) -> None:
    model, tokenizer = small()
    sentences = ["abc", "h g"]
    paths = draw_translations(model, tokenizer, sentences, tmp_path / "figures")
    assert [path.name for path in paths] == ["attention-1.png", "attention-2.png"]
    for path, sentence in zip(paths, sentences, strict=True):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        numbers = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        expected = align(model, tokenizer, sentence)
        assert tuple(numbers["source"]) == expected.source and tuple(numbers["target"]) == expected.target
        torch.testing.assert_close(torch.tensor(numbers["weights"]), expected.weights, rtol=0, atol=6e-5)


def test_without_matplotlib_the_numbers_are_written_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model, tokenizer = small()
    with pytest.raises(
        ModuleNotFoundError, match=r"^figures need matplotlib; install it with: pip install '.+\[viz"
    ):
        draw_translations(model, tokenizer, ["abc", "a"], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention-1.json", "attention-2.json"]


# ---------------------------------------------------------------- the picture


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (3, 4), (6, 8)])
def test_every_layer_and_every_head_of_the_last_is_drawn(layers: int, heads: int) -> None:
    given = alignment(["a", "b"], ["c", "d", "e"], layers, heads)
    drawn = {axes.get_title(): axes.images[0].get_array() for axes in panels(figure_of(given))}
    assert list(drawn) == [
        *(f"layer {n}, mean of heads" for n in range(1, layers + 1)),
        *(f"layer {layers}, head {n}" for n in range(1, heads + 1)),
    ]
    for n in range(layers):
        mean = torch.tensor(drawn[f"layer {n + 1}, mean of heads"])
        torch.testing.assert_close(mean, given.weights[n].mean(0))
    for n in range(heads):
        torch.testing.assert_close(torch.tensor(drawn[f"layer {layers}, head {n + 1}"]), given.weights[-1, n])


def visible_texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


@pytest.mark.parametrize(("n_source", "n_target"), [(2, 3), (13, 40), (40, 12), (40, 40)])
def test_no_text_overlaps_another_or_a_panel(n_source: int, n_target: int) -> None:
    long = ["▁Schlittschuhläufer", "WWWWWWWWWWWWWWWWWWWWWWWW", "▁ein", ".", "Ägypten"]
    given = alignment([*(long * 8)[: n_source - 1], "⟨eos⟩"], [*(long * 8)[: n_target - 1], "⟨eos⟩"])
    figure = figure_of(given)
    FigureCanvasAgg(figure).draw()
    texts = [text for text in visible_texts(figure) if text.get_window_extent().width > 0]
    boxes = [text.get_window_extent().shrunk(0.98, 0.98) for text in texts]
    assert len(texts) > n_source + n_target
    for index, box in enumerate(boxes):
        for other in range(index):
            assert not box.overlaps(boxes[other]), (texts[index], texts[other])
        for axes in figure.axes:
            assert not box.overlaps(axes.bbox), (texts[index], axes.get_title())


def test_both_sides_are_labelled_with_the_tokens() -> None:
    given = alignment(["ein", "▁Hund", "⟨eos⟩"], ["a", "▁dog", ".", "⟨eos⟩"], 1, 2)
    figure = figure_of(given)
    for axes in panels(figure):
        assert [label.get_text() for label in axes.get_xticklabels()] == list(given.source)
        left = [label.get_text() for label in axes.get_yticklabels()]
        assert left == (["", "", "", ""] if axes.get_title().endswith("head 2") else list(given.target))
    titles = [text.get_text() for text in visible_texts(figure)]
    assert "columns, source:  ein Hund\nrows, target:  a dog." in titles
    assert "attention weight" in titles


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_tokens_are_drawn_as_text(tmp_path: Path) -> None:
    tokens = ["$\\frac{", "$x$", "</script>", "x" * 10_000, "漢字", "⟨eos⟩"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(alignment(tokens, tokens), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size < 2_000_000
    labels = {text.get_text() for text in visible_texts(figure_of(alignment(tokens, tokens)))}
    assert {"$\\frac{", "$x$", "x" * 15 + "…"} <= labels
    assert not any(re.search("x{200}", label) for label in labels)
