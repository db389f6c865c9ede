"""Models from files, and into them."""

from .chat_template import load_template_of, names_of
from .huggingface import to_huggingface
from .llama2c import load_llama2c
from .native import MODEL_FILE, model_file, tokenizer_file_of
from .opening import load, load_tokenizer_of

__all__ = [
    "MODEL_FILE",
    "load",
    "load_llama2c",
    "load_template_of",
    "load_tokenizer_of",
    "model_file",
    "names_of",
    "to_huggingface",
    "tokenizer_file_of",
]
