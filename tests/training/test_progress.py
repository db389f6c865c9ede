"""What a person, a file and a program each get to see."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from transformer.training.metrics import Record
from transformer.training.progress import Mode, Progress, duration, sparkline

LOG: Record = {
    "step": 10, "time": 1.0, "train/loss": 3.25, "train/nll": 3.0, "opt/lr": 1e-3,
    "perf/tokens_per_second": 12345.6,
}  # fmt: skip
EVALUATION: Record = {"step": 10, "time": 1.0, "val/loss": 2.5, "sample": "Ein Hund läuft. → A dog runs."}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def shown(mode: Mode, *, terminal: bool = False, log: Path | None = None) -> str:
    out = io.StringIO()
    with Progress(
        Console(file=out, force_terminal=terminal, width=100), mode, log=log, clock=Clock()
    ) as progress:
        progress.start(0, 100)
        progress.message("resuming after step 0")
        progress.advance(9)
        progress.record(LOG)
        progress.record(EVALUATION)
        progress.warning("disk full")
        progress.stop()
        progress.summary(
            {"loss": "3.25", "BLEU": "28.1"}, Path("runs/a"), ("transformer", "translate", "runs/a", "A man")
        )
    return out.getvalue()


def test_a_file_gets_one_plain_line_per_record() -> None:
    text = shown("auto")
    assert "\r" not in text and "\x1b" not in text
    lines = text.splitlines()
    assert "step 10/100 · loss 3.2500 · nll 3.0000 · lr 1.00e-03 · 12,346 tokens/s · 0:09 left" in lines
    assert "step 10/100 · val/loss 2.5" in lines
    assert "Ein Hund läuft. → A dog runs." in lines
    assert "warning: disk full" in lines
    assert lines[-2:] == ["Files: runs/a", "Next:  transformer translate runs/a 'A man'"]
    assert any(line.split() == ["BLEU", "28.1"] for line in lines)


def test_a_terminal_gets_a_live_line_with_a_sparkline() -> None:
    text = shown("auto", terminal=True)
    assert "\r" in text and "▁" in text
    assert "loss 3.2500 · 12,346 tokens/s" in text
    assert "Ein Hund läuft." in text


def test_quiet_says_only_warnings() -> None:
    assert shown("quiet") == "warning: disk full\n"


def test_json_is_one_object_per_line() -> None:
    records = [json.loads(line) for line in shown("json").splitlines()]
    assert records[:3] == [LOG, EVALUATION, {"warning": "disk full"}]
    assert records[3] == {
        "figures": {"loss": "3.25", "BLEU": "28.1"},
        "files": "runs/a",
        "next": "transformer translate runs/a 'A man'",
    }


@pytest.mark.parametrize("mode", ["auto", "quiet", "json"])
def test_everything_said_is_kept_in_the_log_file(mode: Mode, tmp_path: Path) -> None:
    path = tmp_path / "new" / "console.log"
    shown(mode, log=path)
    text = path.read_text()
    for part in (
        "resuming after step 0",
        "loss 3.2500",
        "val/loss 2.5",
        "A dog runs.",
        "disk full",
        "BLEU: 28.1",
    ):
        assert part in text
    assert "\r" not in text and "\x1b" not in text


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in shown("auto", terminal=True)
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[36m" in shown("auto", terminal=True)


def test_time_left_follows_the_steps_of_this_session() -> None:
    clock = Clock()
    progress = Progress(Console(file=io.StringIO()), clock=clock)
    progress.start(50, 100)
    clock.now += 18
    assert progress.seconds_left(60) == pytest.approx(19 / 10 * 40)
    assert progress.seconds_left(50) == float("inf")


def test_sparkline_spans_least_to_greatest() -> None:
    assert sparkline([0.0, 7.0, 3.5]) == "▁█▅"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (42.4, "0:42"), (725.0, "12:05"), (10807.0, "3:00:07"), (float("inf"), "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
