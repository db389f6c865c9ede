"""Writing with a model: greedy decoding, sampling, beam search."""

from .beam_search import BeamOptions, beam_generate, beam_search
from .generate import continue_text, generate, stream, stream_text
from .protocol import Decoder, EncoderDecoder, State, evaluating
from .sampling import Sampling
from .translate import translate

__all__ = [
    "BeamOptions",
    "Decoder",
    "EncoderDecoder",
    "Sampling",
    "State",
    "beam_generate",
    "beam_search",
    "continue_text",
    "evaluating",
    "generate",
    "stream",
    "stream_text",
    "translate",
]
