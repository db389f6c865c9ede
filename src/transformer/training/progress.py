"""What a person sees of a run: a live line on a terminal, plain lines in a file, objects for a program."""

from __future__ import annotations

import json
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .metrics import Record

Mode = Literal["auto", "quiet", "json"]
BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24
REDRAW_SECONDS = 0.1
SHOWN_LIVE = ("train/loss", "perf/tokens_per_second")  # what fits in 80 columns
SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/nll": "nll {:.4f}",
    "opt/lr": "lr {:.2e}",
    "perf/tokens_per_second": "{:,.0f} tokens/s",
    "train/skipped": "{} skipped",
    "train/spikes": "{} loss spikes",
}


class Progress:
    """Show the records of one run on `console`, and keep everything said in a log file.

    mode `auto`: on a terminal one live line (step, sparkline and loss, rate, time left), elsewhere one plain
    line per record and never a carriage return; `quiet`: only warnings; `json`: each record as one object
    per line. `log`: a file for the plain lines, such as the run folder's console.log; the `with` block closes
    it.
    """

    def __init__(
        self,
        console: Console,
        mode: Mode = "auto",
        *,
        log: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._mode = mode
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.open("a", encoding="utf-8") if log else None
        self._clock = clock
        self._live: Live | None = None
        self._losses: deque[float] = deque(maxlen=SPARKLINE_WIDTH)
        self._latest: Record = {}
        self._max_steps = self._first_step = 0
        self._started = self._drawn = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._file:
            self._file.close()
            self._file = None

    def start(self, step: int, max_steps: int) -> None:
        """Begin to show steps and count time: `step` steps of `max_steps` were done before."""
        self._first_step, self._max_steps, self._started = step, max_steps, self._clock()
        if self._mode == "auto" and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def stop(self) -> None:
        """Take the live line away; plain words can still be said."""
        if self._live:
            self._live.stop()
            self._live = None

    def advance(self, step: int) -> None:
        """Redraw the live line, ten times a second at most. Costs nothing elsewhere."""
        if self._live and self._clock() - self._drawn >= REDRAW_SECONDS:
            self._draw(step)

    def record(self, record: Record) -> None:
        """Show one record of metrics.jsonl; a `sample` in it is shown below the figures."""
        step = record["step"]
        assert isinstance(step, int)
        loss = record.get("train/loss")
        if isinstance(loss, float):
            self._losses.append(loss)
            self._latest = record
        if self._mode == "json":
            self._json(record)
        line = self._plain_line(step, record)
        self._write_file(line)
        if self._live and "train/loss" in record:
            self._draw(step)
        elif self._mode == "auto":
            self._say(line)
        sample = record.get("sample")
        if isinstance(sample, str):
            self._write_file(sample)
            if self._mode == "auto":
                self._say(sample)

    def message(self, text: str) -> None:
        """Say one line of plain words, such as where the run resumed from."""
        self._write_file(text)
        if self._mode == "auto":
            self._say(text)

    def warning(self, text: str) -> None:
        """Say one line that must be seen in every mode; programs reading JSON get it as an object."""
        self._write_file(f"warning: {text}")
        if self._mode == "json":
            self._json({"warning": text})
        else:
            self._say(f"warning: {text}")

    def summary(self, figures: Mapping[str, str], folder: Path, next_command: Sequence[str]) -> None:
        """Show the end-of-run table, where the files are, and the words of the next command as a shell reads them."""
        places = {"files": str(folder), "next": shlex.join(next_command)}
        for name, text in {**figures, **places}.items():
            self._write_file(f"{name}: {text}")
        if self._mode == "json":
            self._json({"figures": dict(figures), **places})
        elif self._mode == "auto":
            table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
            for name, figure in figures.items():
                table.add_row(Text(name, style="bold"), Text(figure))
            self._console.print(table)
            self._say(f"Files: {folder}")
            self._say(f"Next:  {places['next']}")

    def _draw(self, step: int) -> None:
        assert self._live is not None
        self._drawn = self._clock()
        text = Text(f"step {step}/{self._max_steps}  ", no_wrap=True, overflow="ellipsis")
        text.append(sparkline(list(self._losses)), style="cyan")
        figures = _figures({name: self._latest.get(name) for name in SHOWN_LIVE})
        text.append("  " + " · ".join([*figures, f"{duration(self.seconds_left(step))} left"]))
        self._live.update(text, refresh=True)

    def seconds_left(self, step: int) -> float:
        """Expect the rest to go as the steps of this session went, evaluations and saves included."""
        done = step - self._first_step
        if done <= 0:
            return float("inf")
        return (self._clock() - self._started) / done * (self._max_steps - step)

    def _plain_line(self, step: int, record: Record) -> str:
        head = f"step {step}/{self._max_steps}"
        tail = [f"{duration(self.seconds_left(step))} left"] if "train/loss" in record else []
        return " · ".join([head, *_figures(record), *tail])

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _json(self, document: Mapping[str, object]) -> None:
        self._console.out(json.dumps(dict(document), ensure_ascii=False), highlight=False)

    def _write_file(self, line: str) -> None:
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()


def sparkline(values: Sequence[float]) -> str:
    """Draw values as a row of bars between their least and greatest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def duration(seconds: float) -> str:
    """Write seconds as 0:42, 12:05 or 3:00:07."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _figures(record: Record) -> list[str]:
    """Return the figures worth a place on one line, each with its name."""
    named = {**SHOWN, **{name: name + " {:.4g}" for name in record if name.startswith("val/")}}
    chosen = ((form, record.get(name)) for name, form in named.items())
    return [form.format(value) for form, value in chosen if isinstance(value, (int, float))]
