"""Small published models with a tokenizer and a chat template, made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from transformer.interop import to_huggingface
from transformer.models import build, llama

CORPUS = [
    "to be or not to be, that is the question:",
    "whether 'tis nobler in the mind 12 34",
    "naïve 😀 words\n",
] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(bos: str | None = None) -> Backend:
    """A small byte-level BPE; `bos` is put before a text by its own template."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    if bos is not None:
        pair = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[pair])
    return backend


def write_tokenizer(folder: Path, backend: Backend | None = None, **settings: Any) -> Path:
    """Put a tokenizer into a model's directory."""
    folder.mkdir(exist_ok=True, parents=True)
    (backend or byte_level()).save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"},
        "pad_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": CHATML, **settings}))
    return folder


def write_model(folder: Path, seed: int = 1, **settings: Any) -> Path:
    """A model with random weights and its tokenizer."""
    torch.manual_seed(seed)
    model = build(llama(301, d_model=16, n_heads=2, n_layers=2, d_ff=24, max_seq_len=200)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    to_huggingface(model, folder)
    return write_tokenizer(folder, **settings)
