"""Models from files, and into them."""

from .native import MODEL_FILE, load, load_tokenizer_of, model_file

__all__ = ["MODEL_FILE", "load", "load_tokenizer_of", "model_file"]
