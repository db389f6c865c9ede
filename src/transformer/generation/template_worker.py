"""Renders one chat template; run as a program of its own, with little time and memory, by `chat.py`.

A template is a program that came with somebody's model. It gets Jinja's immutable sandbox, in which it reaches no
attribute that begins with an underscore, no file and no module; and a process that the system stops after a few
seconds or some hundred megabytes, whatever it is doing. It reads a table in JSON and answers with one.

This file imports nothing of the package, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

SECONDS, BYTES, LONGEST = 2, 2**30, 2**22


def limit() -> None:
    """Bound the time and the memory of this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the text of a template, with what templates of chats expect to find."""
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def complain(message: str) -> NoReturn:
        raise TemplateError(message)

    def as_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    class Strict(ImmutableSandboxedEnvironment):
        """Refuses what it should not be asked for, rather than to act as if it were not there."""

        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
            raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__}")

    environment = Strict(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = complain
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    text = environment.from_string(template).render(**values)
    if len(text) > LONGEST:
        raise TemplateError(
            f"it writes {len(text):,} characters, more than the {LONGEST:,} of any conversation"
        )
    return text


def main() -> None:
    """Answer with `text`, or with `error`."""
    request = json.load(sys.stdin)
    limit()
    try:
        answer = {"text": render(request["template"], request["values"])}
    except MemoryError:
        answer = {"error": "it takes too much memory"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
