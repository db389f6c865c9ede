"""Conversations: a chat template makes one text of all messages, and the model continues it.

The template comes with the model, in Jinja, and is run by `template_worker.py`. What the model has read of the
conversation is kept from turn to turn: of the next turn's text only what is new is read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from ..data import Tokenizer
from .protocol import Decoder
from .sampling import Sampling
from .speculative import Drafter, NoDraft, Reader, continue_read
from .text import Writing, show

Message: TypeAlias = "dict[str, str]"
WORKER = Path(__file__).with_name("template_worker.py")
PATIENCE, MOST = 20, 2**18
"""Seconds that a template may take by the clock, and its longest source."""
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endofturn|>", "<|end_of_turn|>")
"""How published models spell the end of a turn."""


def render_template(
    template: str, messages: Sequence[Message], names: Mapping[str, str], answer: bool = True
) -> str:
    """Return the text of a conversation; `names` are the special tokens by their name, `bos_token` and so on.

    answer: end where the model's answer begins. ValueError in one line for a template that fails, reaches for what it
    may not have, or does not come to an end; and where jinja2 is not installed.
    """
    if find_spec("jinja2") is None:
        raise ValueError(
            "chat templates need the package jinja2; run: pip install 'transformer-from-scratch[chat]'"
        )
    if len(template) > MOST:
        raise ValueError(
            f"the chat template has {len(template):,} characters, more than {MOST:,}; it is no template"
        )
    values = {"messages": list(messages), "add_generation_prompt": answer, "tools": None, "documents": None}
    request = json.dumps({"template": template, "values": {**names, **values}})
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(WORKER)],
            input=request,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        found: Any = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        found = {"error": "it takes too much time or memory"}
    if "error" in found:
        reason = " ".join(str(found["error"]).split())
        raise ValueError(f"the chat template is refused: {reason}")
    return str(found["text"])


class Chat:
    """A conversation with a model.

    system: what the model is told before the first message; names: special tokens by their name in templates.
    messages: what was said so far; read: how many tokens the model had to read for the last answer.
    """

    def __init__(
        self,
        model: Decoder[Any],
        tokenizer: Tokenizer,
        template: str,
        names: Mapping[str, str],
        writing: Writing,
        system: str | None = None,
    ) -> None:
        if writing.beams is not None:
            raise ValueError(
                "a conversation is written token by token, without beam search; leave out the beams"
            )
        self.model, self.tokenizer, self.template, self.names = model, tokenizer, template, dict(names)
        self.writing, self.system = writing, system
        ends = (tokenizer.encode_template(end) for end in ENDS if end in template)
        self.stops = frozenset({*tokenizer.stops, *(ids[0] for ids in ends if len(ids) == 1)})
        self.reader = Reader(model, 64, needed=False)
        self.messages: list[Message] = []
        self.read = 0
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, message: str) -> Iterator[str]:
        """Yield the model's answer to a message, piece by piece; what was shown of it is remembered if it is cut off.

        ValueError for a conversation that has become too long, and for a template that is refused; the conversation
        is then as it was.
        """
        messages = [*self.messages, {"role": "user", "content": message}]
        tokens = self.tokenizer.encode_template(render_template(self.template, messages, self.names))
        limit = self.model.stack.position.max_seq_len
        room = (
            self.writing.max_new_tokens
            if limit is None
            else min(self.writing.max_new_tokens, limit - len(tokens))
        )
        if not tokens:
            raise ValueError(
                "the chat template gives no text for this conversation, so there is nothing to answer"
            )
        if room < 1:
            raise ValueError(
                f"the conversation has {len(tokens)} tokens, and the model can number {limit}; "
                "begin anew with /clear"
            )
        return self._answer(messages, tokens, room)

    def _answer(self, messages: list[Message], tokens: list[int], room: int) -> Iterator[str]:
        shown: list[str] = []
        self.read = len(tokens) - self.reader.shared(tokens)
        drafter: Drafter = self.writing.drafter or NoDraft()
        sampling: Sampling = self.writing.sampling
        new = continue_read(self.reader, drafter, tokens, room, sampling, self.stops, len(messages))
        try:
            for piece in show(new, self.tokenizer, self.stops, self.writing.stop_strings):
                shown.append(piece)
                yield piece
        finally:
            self.messages = [*messages, {"role": "assistant", "content": "".join(shown)}]
