"""The command line: `transformer VERB …`. Each verb reads its arguments here and does its work in `commands`.

Nothing that needs PyTorch is imported until a verb runs, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Parameter

app = App(
    name="transformer",
    help="Read, build, train, compare and look inside Transformers.",
    version_flags=[],
    result_action="return_value",
)

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
Configs = Annotated[
    list[Path], Parameter(name="--config", negative=(), help="A YAML file; later ones are laid over earlier.")
]
RunFolder = Annotated[Path, Parameter(help="A run folder, or the folder of one checkpoint.")]


@app.command
def train(
    *overrides: Overrides,
    config: Configs,
    quiet: Annotated[bool, Parameter(negative=(), help="Show warnings only.")] = False,
    json: Annotated[bool, Parameter(negative=(), help="Show each record as a line of JSON.")] = False,
) -> int:
    """Train a model as a configuration says, evaluate it, and leave all in a run folder.

    Any setting can be given by its path, after the files: `--training.max_steps 200`. A run that was stopped
    is gone on with by training with the `config.yaml` of its folder.
    """
    from .commands import train as work

    return work(config, overrides, mode="json" if json else "quiet" if quiet else "auto")


@app.command
def inspect(*overrides: Overrides, config: Configs) -> int:
    """Show what a configuration comes to, without running it.

    The settings and where each was written, the tree of parts with their parameters, operations per token, and
    the memory that training would take.
    """
    from .commands import inspect as work

    return work(config, overrides)


@app.command
def prepare(output: Path, *overrides: Overrides, config: Configs | None = None) -> int:
    """Turn your own text, or parallel files, into the form that training reads: tokens, on disk.

    OUTPUT is the new folder. What to read is said as in a configuration: `--data.kind parallel --data.path DIR
    --data.source_language fr --data.target_language en`, or `--data.kind text --data.path FILE`. Texts larger
    than the memory are no problem.
    """
    from .commands import prepare as work

    return work(output, config or [], overrides)


@app.command
def translate(
    run: RunFolder,
    /,
    *sentences: str,
    beam_size: Annotated[int, Parameter(help="Targets searched at once; 1 is greedy.")] = 4,
    length_penalty: Annotated[float, Parameter(help="α of the paper's length penalty.")] = 0.6,
) -> int:
    """Translate sentences, or the lines of the standard input when none is given."""
    from .commands import translate as work

    return work(run, sentences or _lines(), beam_size, length_penalty)


@app.command
def generate(
    run: RunFolder,
    prompt: str = "\n",
    /,
    *,
    max_new_tokens: int = 200,
    temperature: Annotated[float, Parameter(help="0 always takes the most probable token.")] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
) -> int:
    """Continue a prompt with a language model, shown as it is written."""
    from .commands import generate as work

    return work(run, prompt, max_new_tokens, (temperature, top_k, top_p, min_p, seed))


@app.command
def evaluate(run: RunFolder, /, *overrides: Overrides, split: str | None = None) -> int:
    """Measure a trained model on a whole split of its data: BLEU and chrF, or perplexity and bits per byte.

    The data and the search are those of the run's own configuration, unless given by their path:
    `--evaluation.beam_size 1`, `--data.path DIR`.
    """
    from .commands import evaluate as work

    return work(run, split, overrides)


def _lines() -> list[str]:
    """The lines of the standard input."""
    return [line.rstrip("\n") for line in sys.stdin]


def main() -> NoReturn:
    """Run the command line: exit code 0 done, 1 the run failed, 2 a mistake in what was given, 130 interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.exit(run([argument for argument in arguments if argument != "--debug"], debug=debug))


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Run one command and return its exit code; a mistake is told in one line, with a traceback only to debug."""
    try:
        result = app(arguments, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except CycloptsError as error:
        if debug:
            raise
        return _fail(f"{error}; see transformer --help", 2)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if debug:
            raise
        return _fail(str(error), 2)
    except ArithmeticError as error:
        if debug:
            raise
        return _fail(str(error), 1)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    """Say in one line what is wrong."""
    line = " ".join(message.split())
    sys.stderr.write(f"transformer: {line}\n")
    return code
