"""The command line: `transformer VERB …`. Each verb reads its arguments here and does its work in `commands`.

Nothing that needs PyTorch is imported until a verb runs, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
ModelPath = Annotated[
    Path,
    Parameter(help="A run folder, a directory with config.json, a .gguf file, or a .bin file of llama2.c."),
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
def inspect(*given: Overrides, config: Configs | None = None) -> int:
    """Show what a configuration comes to without running it, or what distinguishes two models.

    With --config: the settings and where each was written, the tree of parts with their parameters, operations per
    token, and the memory that training would take. With two of a family's name, a configuration file, a run folder and
    a published model: what the second has that the first has not, part by part, and what each costs, as in
    `transformer inspect gpt llama`.
    """
    from . import commands as work

    if config:
        return work.inspect(config, given)
    if len(given) != 2 or any(name.startswith("-") for name in given):
        raise ValueError("inspect needs --config FILE, or two models to compare, such as gpt llama")
    return work.inspect_difference(*given)


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


@Parameter(name="*")
@dataclass(frozen=True)
class Choosing:
    """How each next token is chosen, and where the text ends."""

    max_new_tokens: int = 200
    temperature: Annotated[float | None, Parameter(help="0 always takes the most probable token.")] = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: Annotated[
        float, Parameter(help="Of tokens that the text has already; 1 is none.")
    ] = 1.0
    seed: int = 0
    stop: Annotated[list[str], Parameter(negative=(), help="End before this text; may be given again.")] = (
        field(default_factory=list)
    )
    draft: Annotated[
        Path | None, Parameter(help="A smaller model of the same tokenizer, to guess ahead.")
    ] = None
    look_up: Annotated[int | None, Parameter(help="Guess so many tokens ahead from the text itself.")] = None
    tokenizer: Annotated[
        Path | None, Parameter(help="A tokenizer.json, or a model that has the tokenizer.")
    ] = None

    def work(self, temperature: float) -> dict[str, Any]:
        """What `writing` is to be told."""
        from .generation import Sampling

        chosen = temperature if self.temperature is None else self.temperature
        filters = (chosen, self.top_k, self.top_p, self.min_p, self.seed, self.repetition_penalty)
        names = ("max_new_tokens", "stop", "draft", "look_up", "tokenizer")
        return {name: getattr(self, name) for name in names} | {"sampling": Sampling(*filters)}


CHOOSING = Choosing()


@app.command
def generate(
    model: ModelPath,
    prompt: str | None = None,
    /,
    *,
    choosing: Choosing = CHOOSING,
    samples: Annotated[int, Parameter(help="Texts to write.")] = 1,
    beam_size: Annotated[
        int | None, Parameter(help="Search for the best text instead of drawing one.")
    ] = None,
    length_penalty: Annotated[float, Parameter(help="α of the search's length penalty.")] = 0.6,
    stream: Annotated[
        bool | None, Parameter(help="Show the text as it is written; on a terminal it is.")
    ] = None,
    compiled: Annotated[
        bool,
        Parameter("--compile", help="Compile the step: a minute at first, then faster for small models."),
    ] = False,
) -> int:
    """Continue a prompt with a language model: of a run, of a published model's directory, or of a .gguf file."""
    from .writing import generate as work

    options: dict[str, Any] = {**choosing.work(1.0), "beam_size": beam_size, "length_penalty": length_penalty}
    return work(model, prompt, samples=samples, stream=stream, compiled=compiled, **options)


@app.command
def chat(
    model: ModelPath,
    /,
    *,
    choosing: Choosing = CHOOSING,
    system: Annotated[str | None, Parameter(help="What the model is told before all messages.")] = None,
) -> int:
    """Talk with a model that has a chat template. The temperature is 0.7 unless given.

    Each line is a message. /clear begins anew, /quit ends; Ctrl-C stops an answer.
    """
    from .writing import chat as work

    return work(model, system=system, **choosing.work(0.7))


@app.command
def evaluate(
    run: Annotated[
        Path, Parameter(help="A run folder, a checkpoint's, a published model's, or a .gguf file.")
    ],
    /,
    *overrides: Overrides,
    split: Annotated[str | None, Parameter(help="Of the run's own data.")] = None,
    task: Annotated[str | None, Parameter(help="lambada, hellaswag, arc, piqa or openbook_qa.")] = None,
    data: Annotated[
        Path | None, Parameter(help="The task's .jsonl, or a text file when there is no task.")
    ] = None,
    limit: Annotated[int | None, Parameter(help="Take the first lines only.")] = None,
) -> int:
    """Measure a model: on a split of its run's data, on a zero-shot task, or on any text file.

    Without --task and --data: BLEU and chrF, or perplexity and bits per byte, on a whole split. The data and the
    search are those of the run's own configuration, unless given by their path: `--evaluation.beam_size 1`,
    `--data.path DIR`. With them: accuracy on a task, `--task lambada --data FILE`, or the perplexity of a text,
    `--data FILE`, for any language model that can be loaded.
    """
    from . import commands as work

    if task is None and data is None and limit is None:
        return work.evaluate(run, split, overrides)
    if overrides or split is not None:
        given = overrides[0] if overrides else "--split"
        raise ValueError(f"{given} is for a run's own data; leave it out with --task or --data FILE")
    return work.evaluate_file(run, task, data, limit)


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
