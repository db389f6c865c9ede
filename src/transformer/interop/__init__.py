"""Models from files, and into them."""

from .huggingface import to_huggingface
from .llama2c import load_llama2c
from .native import MODEL_FILE, model_file, tokenizer_file_of
from .opening import load, load_tokenizer_of

__all__ = [
    "MODEL_FILE",
    "load",
    "load_llama2c",
    "load_tokenizer_of",
    "model_file",
    "to_huggingface",
    "tokenizer_file_of",
]
