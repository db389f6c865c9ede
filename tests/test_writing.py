"""`transformer generate` and `transformer chat`, on small published models made here."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.chat_models import CHATML, write_model, write_tokenizer
from tests.interop.test_published_tokenizer import STORIES
from transformer.cli import run
from transformer.data import ByteTokenizer
from transformer.generation import Chat, Sampling, Writing, generate, render_template
from transformer.interop import load, load_template_of, load_tokenizer_of, names_of, to_huggingface
from transformer.models import DecoderOnly, build, llama
from transformer.writing import _printable

Output = pytest.CaptureFixture[str]
GREEDY = ["--temperature", "0", "--max-new-tokens", "24"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "one")


def say(capsys: Output, *arguments: object) -> str:
    assert run([str(x) for x in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# ---------------------------------------------------------------- generate


def test_a_published_directory_continues_a_prompt(folder: Path, capsys: Output) -> None:
    model, tokenizer = load(folder), load_tokenizer_of(folder)
    assert isinstance(model, DecoderOnly)
    ids = torch.tensor([tokenizer.prompt("to be")])
    new = generate(model, ids, 24, temperature=0, stop=tokenizer.stops)[0, ids.shape[1] :].tolist()
    expected = "to be" + tokenizer.decode(token for token in new if token not in tokenizer.stops) + "\n"
    command = ["generate", folder, "to be", *GREEDY]
    assert say(capsys, *command) == say(capsys, *command, "--stream") == expected
    assert say(capsys, *command, "--look-up", 3) == say(capsys, *command, "--draft", folder) == expected
    text = expected[len("to be") : -1]
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    shown = say(capsys, *command, "--stop", stop)
    assert shown == "to be" + text[: text.index(stop)] + "\n"
    assert say(capsys, *command, "--repetition-penalty", 3) != expected


def test_samples_differ_and_are_the_same_again(folder: Path, capsys: Output) -> None:
    command = ["generate", folder, "to", "--max-new-tokens", 8, "--samples", 3]
    first = say(capsys, *command, "--seed", 4)
    assert first == say(capsys, *command, "--seed", 4) != say(capsys, *command, "--seed", 5)
    texts = first.split("\n\nto")
    assert len(texts) >= 3 and len(set(texts)) == len(texts)
    assert say(capsys, "generate", folder, "to", *GREEDY, "--beam-size", 3).startswith("to")


def test_a_llama2c_file_tells_the_published_story(capsys: Output) -> None:
    said = say(capsys, "generate", STORIES / "stories260K.bin", "--temperature", 0, "--max-new-tokens", 60)
    story = (STORIES / "expected_greedy.txt").read_text(encoding="utf-8")
    assert len(said) > 100 and story.startswith(said[:-1])


def test_guesses_are_counted(folder: Path, capsys: Output) -> None:
    assert run(["generate", str(folder), "to be", *GREEDY, "--draft", str(folder)]) == 0
    told = capsys.readouterr().err
    assert told.startswith("guesses kept: ") and "(100%)" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--beam-size", "2", "--samples", "2"],
            "beam search finds one text; leave out --samples or --beam-size",
        ),
        (["--beam-size", "2", "--look-up", "2"], "beam search takes no draft and no repetition penalty"),
        (["--draft", "other", "--look-up", "2"], "cannot both guess; leave out --draft or --look-up"),
        (["--draft", "other"], "has another tokenizer than the model, so it cannot guess for it"),
        (["--samples", "0"], "samples must be at least 1, got 0"),
        (["--stop", ""], "a stop string must not be empty"),
        (["--repetition-penalty", "0"], "repetition_penalty must be above 0"),
        (["--tokenizer", "small"], "give the tokenizer that belongs to the model"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    options: list[str], message: str, folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    if "other" in options and not Path("other").exists():
        write_model(Path("other"), seed=2)
        data = json.loads(Path("other/tokenizer.json").read_text())
        data["model"]["merges"] = data["model"]["merges"][:-1]
        Path("other/tokenizer.json").write_text(json.dumps(data))
    path = folder
    if "small" in options:
        write_tokenizer(Path("small"))
        (Path("small") / "config.json").write_text("{}")
        path = Path("narrow")
        to_huggingface(build(llama(20, d_model=8, n_heads=2, n_layers=1)), path)
    assert run(["generate", str(path), "to be", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


# ---------------------------------------------------------------- templates


TEMPLATES = {
    "chatml": CHATML,
    "llama": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}<<SYS>>{{ m.content | trim }}"
    "{% continue %}{% endif %}[{{ loop.index0 }}:{{ m['content'] | tojson }}]{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\n"
    "  {{- ns.n ~ m.role }}\n{% endfor %}{{ 'end' if add_generation_prompt }}",
}
MESSAGES = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": 'Say "é" <|im_end|>'}]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_give_the_text_of_transformers(name: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": ""}
    ours = render_template(TEMPLATES[name], MESSAGES, names)
    theirs, _ = utils.render_jinja_template(
        [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=True, **names
    )
    assert ours == theirs[0] and len(ours) > 10


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages.__class__ }}", "SecurityError: access to '__class__' of a list"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "refused: TypeError: no loader|refused: .*no loader"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError: Range too big"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "too much time or memory",
        ),
        ("{{ 'x' * 10 ** 10 }}", "it takes too much memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        (
            "{{ 'x' * 5000000 }}",
            "it writes 5,000,000 characters, more than the 4,194,304 of any conversation",
        ),
        ("{{ raise_exception('no system role') }}", "TemplateError: no system role"),
        ("{% for %}", "TemplateSyntaxError"),
        ("x" * 300_000, "^the chat template has 300,000 characters, more than 262,144; it is no template$"),
    ],
)
def test_a_hostile_template_is_refused_in_one_line(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        render_template(template, MESSAGES, {})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_jinja_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformer.generation.chat.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need the package jinja2; run: pip install '.*\[chat\]'$"):
        render_template(CHATML, MESSAGES, {})


def test_a_template_is_found_where_models_keep_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert load_template_of(tmp_path) == CHATML
    write_tokenizer(
        tmp_path, chat_template=[{"name": "tool", "template": "a"}, {"name": "default", "template": "b"}]
    )
    assert load_template_of(tmp_path) == "b"
    (tmp_path / "chat_template.jinja").write_text("c")
    assert load_template_of(tmp_path) == "c"
    for path in (tmp_path / "empty", tmp_path / "absent"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(
            ValueError, match=r"has no chat template, so it was not made for chat; use transformer gen"
        ):
            load_template_of(path)


# ---------------------------------------------------------------- conversations


def talker(folder: Path, **writing: Any) -> Chat:
    model, tokenizer = load(folder), load_tokenizer_of(folder)
    options = {"max_new_tokens": 12, "sampling": Sampling(0.0), **writing}
    return Chat(model, tokenizer, CHATML, names_of(tokenizer), Writing(**options), "Be brief.")  # type: ignore[arg-type]


def test_what_was_read_is_not_read_again_and_changes_nothing(folder: Path) -> None:
    talk, read = talker(folder), []
    for message in ("to be", "or not", "that is"):
        before = [*talk.messages, {"role": "user", "content": message}]
        answer = "".join(talk.answer(message))
        read.append(talk.read)
        whole = talk.tokenizer.encode_template(render_template(CHATML, before, talk.names))
        fresh = talker(folder)
        fresh.messages = before[:-1]
        assert "".join(fresh.answer(message)) == answer and fresh.read == len(whole)
        assert talk.messages[-1] == {"role": "assistant", "content": answer}
    assert read[0] > read[1] and read[2] < len(whole) / 2
    talk.clear()
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    with pytest.raises(
        ValueError, match=r"^the conversation has \d+ tokens, and the model can number 200; begin anew"
    ):
        talk.answer("long " * 100)
    assert len(talk.messages) == 1


def test_an_answer_that_is_cut_off_is_remembered_as_far_as_it_was_shown(folder: Path) -> None:
    talk = talker(folder)
    pieces = talk.answer("to be")
    shown = next(pieces)
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": shown}
    assert "".join(talk.answer("go on")) == "".join(pieces_of(talker(folder), [("to be", shown)], "go on"))


def pieces_of(talk: Chat, said: list[tuple[str, str]], message: str) -> list[str]:
    for user, answer in said:
        talk.messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return list(talk.answer(message))


def test_piped_lines_are_messages(folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(text: str, *options: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return say(capsys, "chat", folder, *GREEDY, *options).splitlines()

    first = talk("to be\n/quit\nnever\n")
    twice = talk("to be\n\n/clear\nto be\n")
    assert twice == first * 2  # after /clear the conversation is as at the beginning
    assert talk("to be\n", "--system", "Speak of words.") != first
    assert talk("to be\n", "--look-up", "3") == first


def test_ctrl_c_stops_the_answer_and_not_the_session(
    folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = DecoderOnly.decode, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return decode(self, *arguments)

    monkeypatch.setattr(DecoderOnly, "decode", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("to be\nor not\n"))
    said = say(capsys, "chat", folder, *GREEDY)
    assert " …\n" in said and len(said.partition(" …\n")[2]) > 1 and len(calls) > 6


def test_what_cannot_be_talked_with_is_refused(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["chat", str(STORIES / "stories260K.bin")]) == 2
    assert "has no chat template" in capsys.readouterr().err
    hostile = write_model(tmp_path / "hostile", chat_template="{{ messages.__class__ }}")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert run(["chat", str(hostile)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "SecurityError: access to '__class__' of a list" in said
    empty = write_tokenizer(tmp_path / "hostile", chat_template="{% if false %}x{% endif %}")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert run(["chat", str(empty)]) == 2
    assert "gives no text for this conversation" in capsys.readouterr().err
    write_tokenizer(empty)
    (empty / "tokenizer.json").write_bytes(ByteTokenizer().to_bytes())
    assert run(["chat", str(empty)]) == 2
    assert "has a tokenizer of kind byte, which no chat template is made for" in capsys.readouterr().err


def test_a_terminal_is_not_commanded() -> None:
    assert _printable("a\x1b[2Jé\u202e😀\n\t\x07\x9b") == "a[2Jé😀\n\t"
    assert _printable("👩‍🚀 中文\u00a0e\u0301") == "👩‍🚀 中文\u00a0e\u0301"
