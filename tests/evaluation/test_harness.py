"""lm-evaluation-harness on our models: a task of its own, offline, finds what our tasks find."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transformer.data import ByteTokenizer
from transformer.evaluation import report_task
from transformer.generation import generate
from transformer.models import DecoderOnly, build, gpt

ROWS = [
    {"query": "Question: What is blue?\n", "choices": ["the sky", "a rose", "snow"], "gold": 0},
    {"query": "Question: What is white?", "choices": ["coal", "snow"], "gold": 1},
    {"query": "Question: What is red?", "choices": ["a red rose at dawn", "grass"], "gold": 0},
    {"query": "Question: Who?", "choices": ["you", "he", "she", "they all"], "gold": 2},
]
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
{rest}
metric_list: [{metrics}]
"""
NEEDED = "the package lm_eval is not installed: pip install 'transformer-from-scratch[harness]'"


@pytest.fixture(scope="module")
def model() -> DecoderOnly:
    torch.manual_seed(5)
    built = build(gpt(259, 16, 2, 2, max_seq_len=64))
    assert isinstance(built, DecoderOnly)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built.eval()


def harness(model: DecoderOnly) -> Any:
    pytest.importorskip("lm_eval", reason=NEEDED)
    from transformer.evaluation.harness import HarnessModel

    return HarnessModel(model, ByteTokenizer())


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def evaluate(
    adapter: Any, folder: Path, name: str, rows: list[dict[str, Any]], **options: str
) -> dict[str, Any]:
    """What the harness finds with a task that a YAML file and a file of rows describe."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / f"{name}.yaml").write_text(YAML.format(name=name, file=folder / "rows.jsonl", **options))
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(adapter, tasks=[name], task_manager=tasks, bootstrap_iters=0)
    return dict(found["results"][name])


def test_multiple_choice_is_what_our_task_finds(
    model: DecoderOnly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = harness(model)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    found = evaluate(
        adapter, tmp_path, "local_choice", ROWS, kind="multiple_choice",
        text="{{query.rstrip()}}\\nAnswer:", rest='doc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"',
        metrics="{metric: acc}, {metric: acc_norm}",
    )  # fmt: skip
    ours = report_task(model, ByteTokenizer(), "arc", tmp_path / "rows.jsonl").figures
    assert found["acc,none"] == ours["arc/accuracy"] and found["acc_norm,none"] == ours["arc/accuracy_norm"]


def test_lambada_is_what_our_task_finds(
    model: DecoderOnly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = harness(model)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = [
        {"context": "He saw the old", "continuation": "dog"},
        {"context": "to be or not to", "continuation": "be"},
    ]
    found = evaluate(
        adapter, tmp_path, "local_lambada", rows, kind="loglikelihood", text="{{context}}",
        rest='doc_to_target: "{{\' \' + continuation}}"\ntarget_delimiter: ""',
        metrics="{metric: perplexity, aggregation: perplexity}, {metric: acc, aggregation: mean}",
    )  # fmt: skip
    ours = report_task(model, ByteTokenizer(), "lambada", tmp_path / "rows.jsonl").figures
    assert found["perplexity,none"] == pytest.approx(ours["lambada/perplexity"])
    assert found["acc,none"] == ours["lambada/accuracy"]


def test_a_text_is_predicted_with_as_much_before_each_token_as_fits(model: DecoderOnly) -> None:
    adapter, text = (
        harness(model),
        "so long a text that it does not fit into the model at once, but does in two or three",
    )
    (found,) = adapter.loglikelihood_rolling(requests((text,)))
    tokens, expected = [1, *ByteTokenizer().encode(text)], 0.0
    for start in range(1, len(tokens), 64):
        end = min(start + 64, len(tokens))
        window = tokens[max(0, end - 65) : end]
        with torch.no_grad():
            logs = model(torch.tensor([window[:-1]]))[0].double().log_softmax(-1)
        expected += sum(float(logs[i - (end - len(window)) - 1, tokens[i]]) for i in range(start, end))
    assert found == pytest.approx(expected, abs=1e-4)


def test_texts_are_written_greedily_up_to_a_stop_string(model: DecoderOnly) -> None:
    adapter, tokenizer = harness(model), ByteTokenizer()
    prompt = torch.tensor([tokenizer.encode("to be")])
    written = tokenizer.decode(generate(model, prompt, 12, temperature=0, stop=2)[0, 5:].tolist())
    stop = written[4:6]
    options: list[dict[str, Any]] = [
        {"until": [stop], "max_gen_toks": 12}, {"until": stop, "max_gen_toks": 12, "do_sample": False},
        {"until": [], "max_gen_toks": 12, "temperature": 0.0},
    ]  # fmt: skip
    found = adapter.generate_until(requests(*(("to be", one) for one in options)))
    assert found == [written[: written.index(stop)]] * 2 + [written]
    (long,) = adapter.generate_until(requests(("x" * 200, {"max_gen_toks": 8})))
    assert len(ByteTokenizer().encode(long)) >= 0
    with pytest.raises(
        ValueError, match=r"^the task asks for num_beams, which is not known; known are min_p, seed"
    ):
        adapter.generate_until(requests(("to be", {"num_beams": 2})))


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "transformer.evaluation.harness", raising=False)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("transformer.evaluation.harness")
    expected = "needs the package lm_eval; install it with: pip install 'transformer-from-scratch[harness]'"
    assert str(caught.value).endswith(expected) and "\n" not in str(caught.value)
