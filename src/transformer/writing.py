"""What `transformer generate` and `transformer chat` do: open a model, whoever wrote it, and show what it writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .data import Tokenizer
from .generation import (
    BeamOptions,
    Chat,
    Compiled,
    DraftModel,
    PromptLookup,
    Sampling,
    Tally,
    Writing,
    write,
)
from .interop import load, load_template_of, load_tokenizer_of, names_of
from .interop.published_tokenizer import PublishedTokenizer
from .models import DecoderOnly

Drafter = DraftModel | PromptLookup | None
HELP = "Say something; /clear begins anew, /quit ends, Ctrl-C stops an answer."


def generate(
    path: Path,
    prompt: str | None,
    *,
    samples: int,
    stream: bool | None,
    beam_size: int | None,
    length_penalty: float,
    max_new_tokens: int,
    stop: Sequence[str],
    draft: Path | None,
    look_up: int | None,
    tokenizer: Path | None,
    sampling: Sampling,
    compiled: bool = False,
) -> int:
    """Write the prompt and what the model makes of it."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    beams = None if beam_size is None else BeamOptions(beam_size, length_penalty, at_limit="cut")
    if beams is not None and samples > 1:
        raise ValueError("beam search finds one text; leave out --samples or --beam-size")
    strings = [_unescaped(string) for string in stop]
    model, words = _open(path), load_tokenizer_of(tokenizer or path)
    drafter = _drafter(model, words, draft, look_up)
    writing = Writing(max_new_tokens, sampling, strings, beams, drafter)
    if prompt is None:  # a run of this project knows no token to begin with: a line does
        prompt = "" if isinstance(words, PublishedTokenizer) else "\n"
    writer = Compiled(model) if compiled else model
    for sample in range(samples):
        pieces = write(writer, words, prompt, writing, sample)
        _show(pieces, first=prompt, stream=sys.stdout.isatty() if stream is None else stream)
        sys.stdout.write("\n" if sample + 1 == samples else "\n\n")
    _report(drafter)
    return 0


def chat(
    path: Path,
    *,
    system: str | None,
    max_new_tokens: int,
    stop: Sequence[str],
    draft: Path | None,
    look_up: int | None,
    tokenizer: Path | None,
    sampling: Sampling,
) -> int:
    """Hold a conversation, a line of the input being a message."""
    template, words = load_template_of(path), load_tokenizer_of(tokenizer or path)
    if not isinstance(words, PublishedTokenizer):
        raise ValueError(
            f"{tokenizer or path} has a tokenizer of kind {words.kind}, which no chat template is made for"
        )
    model = _open(path)
    drafter = _drafter(model, words, draft, look_up)
    writing = Writing(max_new_tokens, sampling, [_unescaped(string) for string in stop], None, drafter)
    talk = Chat(model, words, template, names_of(words), writing, system)
    if sys.stdin.isatty():
        sys.stderr.write(HELP + "\n")
    while (message := _message()) is not None and message.strip() != "/quit":
        if message.strip() == "/clear":
            talk.clear()
        elif message.strip():
            _turn(talk, message)
    _report(drafter)
    return 0


def _turn(talk: Chat, message: str) -> None:
    """Show one answer; Ctrl-C stops it, and what was shown is part of the conversation."""
    pieces: Iterator[str] | None = None
    try:
        pieces = talk.answer(message)
        _show(pieces, stream=True)
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    finally:
        if pieces is not None:
            pieces.close()  # type: ignore[attr-defined]  # a generator
    sys.stdout.write("\n")
    sys.stdout.flush()


def _message() -> str | None:
    """The next line of the input, None at its end."""
    while True:
        try:
            if sys.stdin.isatty():
                return input("> ")
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        except EOFError:
            return None
        except KeyboardInterrupt:
            sys.stderr.write("\n" + HELP + "\n")


def _open(path: Path) -> DecoderOnly:
    model = load(path)
    if not isinstance(model, DecoderOnly):
        raise ValueError(
            f"{path} holds a model of kind {model.config.kind}, and only a decoder-only one continues a text; "
            "an encoder-decoder serves transformer translate"
        )
    return model


def _drafter(model: DecoderOnly, words: Tokenizer, draft: Path | None, look_up: int | None) -> Drafter:
    """What guesses tokens ahead, if anything does."""
    if draft is None:
        return None if look_up is None else PromptLookup(look_up)
    if look_up is not None:
        raise ValueError("a draft model and prompt look-up cannot both guess; leave out --draft or --look-up")
    small = _open(draft)
    sizes = small.config.vocab_size, model.config.vocab_size
    if sizes[0] != sizes[1] or load_tokenizer_of(draft).fingerprint != words.fingerprint:
        raise ValueError(
            f"{draft} has another tokenizer than the model, so it cannot guess for it; give a draft that shares it"
        )
    return DraftModel(small)


def _show(pieces: Iterator[str], first: str = "", stream: bool = True) -> None:
    """Write text to the output, each piece at once or all at the end."""
    safe = sys.stdout.isatty()
    sys.stdout.write(_printable(first) if safe else first)
    for piece in pieces if stream else ["".join(pieces)]:
        sys.stdout.write(_printable(piece) if safe else piece)
        sys.stdout.flush()


def _printable(text: str) -> str:
    """The text without characters that would command a terminal, or turn the direction of what follows."""
    return "".join(x for x in text if x in "\n\t\u200d" or x.isprintable() or (x.isspace() and ord(x) > 0x9F))


def _unescaped(string: str) -> str:
    """A stop string as it was meant: a shell has no simple way to give a line's end."""
    return string.replace("\\n", "\n").replace("\\t", "\t")


def _report(drafter: Drafter) -> None:
    """Tell what guessing was worth."""
    if drafter is not None:
        tally: Tally = drafter.tally
        sys.stderr.write(
            f"guesses kept: {tally.kept} of {tally.guessed} ({tally.rate:.0%}), in {tally.calls} calls of the model\n"
        )
