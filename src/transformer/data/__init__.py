"""From text files to batches: tokenizers, prepared data, and streams that are functions of (seed, step)."""

from .bpe import BPEConfig, BPETokenizer, read_tokenizer_json
from .errors import DataError
from .examples import LabelledBatch, LabelledEvaluation, LabelledStream
from .labelled import LabelledCorpus, LabelledData, read_labelled
from .loading import SavedConfig, TokenizerConfig, load_tokenizer, parse_tokenizer
from .masked import MaskedBatch, MaskedEvaluation, MaskedStream, Masking
from .pairs import PairBatch, PairEvaluation, PairStream
from .parallel import ParallelCorpus, ParallelData, prepare_parallel
from .prepared import Corpus, DataConfig, FileData, PreparedCorpus
from .synthetic import SyntheticCorpus, SyntheticData
from .text import TextCorpus, TextData, prepare_text
from .tokenizer import (
    ByteConfig,
    ByteTokenizer,
    CharacterConfig,
    CharacterTokenizer,
    StreamDecoder,
    Tokenizer,
)
from .windows import TextBatch, TextEvaluation, TextStream

__all__ = [
    "BPEConfig",
    "BPETokenizer",
    "ByteConfig",
    "ByteTokenizer",
    "CharacterConfig",
    "CharacterTokenizer",
    "Corpus",
    "DataConfig",
    "DataError",
    "FileData",
    "LabelledBatch",
    "LabelledCorpus",
    "LabelledData",
    "LabelledEvaluation",
    "LabelledStream",
    "MaskedBatch",
    "MaskedEvaluation",
    "MaskedStream",
    "Masking",
    "PairBatch",
    "PairEvaluation",
    "PairStream",
    "ParallelCorpus",
    "ParallelData",
    "PreparedCorpus",
    "SavedConfig",
    "StreamDecoder",
    "SyntheticCorpus",
    "SyntheticData",
    "TextBatch",
    "TextCorpus",
    "TextData",
    "TextEvaluation",
    "TextStream",
    "Tokenizer",
    "TokenizerConfig",
    "load_tokenizer",
    "parse_tokenizer",
    "prepare_parallel",
    "prepare_text",
    "read_labelled",
    "read_tokenizer_json",
]
