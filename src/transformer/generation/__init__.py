"""Writing with a model: greedy decoding, sampling, beam search."""

from .beam_search import BeamOptions, beam_generate, beam_search
from .chat import Chat, render_template
from .compiled import Compiled
from .generate import generate, stream
from .protocol import Decoder, EncoderDecoder, State, evaluating
from .sampling import Sampling
from .speculative import DraftModel, PromptLookup, Tally, speculate
from .stopping import StopStrings
from .text import Writing, continue_text, show, stream_text, write, write_tokens
from .translate import translate

__all__ = [
    "BeamOptions",
    "Chat",
    "Compiled",
    "Decoder",
    "DraftModel",
    "EncoderDecoder",
    "PromptLookup",
    "Sampling",
    "State",
    "StopStrings",
    "Tally",
    "Writing",
    "beam_generate",
    "beam_search",
    "continue_text",
    "evaluating",
    "generate",
    "render_template",
    "show",
    "speculate",
    "stream",
    "stream_text",
    "translate",
    "write",
    "write_tokens",
]
