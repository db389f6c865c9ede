"""The README's snippets run, and its commands are commands."""

import re
import shlex
from pathlib import Path

import torch

from transformer.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_the_quick_start_runs():
    snippets = blocks("python")
    assert snippets
    for snippet in snippets:
        names = {}
        with torch.device("meta"):
            exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102 — our own page, run as a reader would
        assert names["gpt"].config.stack.position.kind == "rotary_position"
        assert names["model"].config.d_model == 512


def test_the_commands_exist():
    verbs = [
        shlex.split(line)[1]
        for block in blocks("")
        for line in block.splitlines()
        if line.startswith("transformer ")
    ]
    assert {"train", "translate", "evaluate", "generate", "inspect", "prepare"} <= set(verbs)
    for verb in verbs:
        assert verb in app


def test_the_files_it_names_exist():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"configs/\w+\.yaml", README):
        assert (root / target).exists(), target
