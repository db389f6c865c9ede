"""Time Mamba and Mamba-2 against the models of `transformers` that need no GPU, in one process.

`python benchmarks/state_space.py`. Both are built with the same sizes and the same weights: ours are loaded from what
`transformers` saves. Training is one forward and one backward pass of the whole language model, the two in turn.
Decoding is greedy, each library by its own `generate`, and the texts must be equal. All times are of the processor.
Ratios are of pairs that ran one after the other; given are their median, least and largest. `sequential` is our own
model with the scan token by token. `compiled` is `Compiled(model)` in the model's place.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig

from transformer import load
from transformer.enhancements import SCANS
from transformer.generation import Compiled, generate


def pair(kind: str, d_model: int, n_layers: int) -> tuple[Any, Any]:
    """The published model with random weights, and ours with the same."""
    sizes: dict[str, Any] = {"vocab_size": 256, "hidden_size": d_model, "num_hidden_layers": n_layers}
    sizes |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    heads = {
        "num_heads": 2 * d_model // 32,
        "head_dim": 32,
        "n_groups": 1,
        "state_size": 64,
        "chunk_size": 64,
    }
    config = MambaConfig(**sizes) if kind == "mamba" else Mamba2Config(**sizes, **heads)
    theirs = AutoModelForCausalLM.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load(folder)
    return theirs.train(), ours.train()


def train(model: Any, tokens: Tensor) -> float:
    """Seconds of processor time for a forward and a backward pass."""
    model.zero_grad()
    begin = time.process_time()
    out = model(tokens)
    logits = out if isinstance(out, Tensor) else out.logits
    logits.square().mean().backward()
    return time.process_time() - begin


def write(theirs: Any, ours: Any, prompt: Tensor, new: int) -> tuple[float, float]:
    """Seconds of processor time that each takes to write `new` tokens; both must write the same."""
    begin = time.process_time()
    first = theirs.generate(
        prompt, max_new_tokens=new, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    middle = time.process_time()
    second = generate(ours, prompt, new, temperature=0.0)
    end = time.process_time()
    assert torch.equal(first, second)
    return middle - begin, end - middle


def report_training(kind: str, options: argparse.Namespace) -> None:
    """Print a line for each length, against `transformers` and against our own scan token by token."""
    theirs, ours = pair(kind, options.d_model, options.layers)
    chosen = ours.execution
    for length in options.lengths:
        tokens = torch.randint(256, (1, length))
        for name, other in (("train", theirs), ("train, sequential", ours)):
            times = []
            for _ in range(options.rounds + 1):
                ours.execution = replace(chosen, scan=SCANS["sequential"] if other is ours else None)
                first = train(other, tokens)
                ours.execution = chosen
                times.append((first, train(ours, tokens)))
            slow, fast = zip(*times[1:], strict=True)  # the first round warms up
            ratios = [a / b for a, b in times[1:]]
            line(kind, f"{name}, {length} tokens", 1e3 * min(slow), 1e3 * min(fast), ratios)


def report_decoding(kind: str, options: argparse.Namespace) -> None:
    """Print a line for our model as it is and one for it compiled."""
    theirs, ours = (model.eval() for model in pair(kind, options.decode_width, options.decode_layers))
    prompt = torch.randint(256, (1, 16))
    for name, writer in (("decode", ours), ("decode, compiled", Compiled(ours))):
        times = [write(theirs, writer, prompt, options.new_tokens) for _ in range(options.rounds + 1)][1:]
        speeds = [options.new_tokens / min(side) for side in zip(*times, strict=True)]
        line(kind, f"{name}, tokens/s", speeds[0], speeds[1], [a / b for a, b in times])


def line(kind: str, name: str, theirs: float, ours: float, ratios: list[float]) -> None:
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    print(f"{kind:<8} {name:<32} {theirs:>9.0f} {ours:>9.0f}   {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mamba against the models of transformers, on a CPU")
    parser.add_argument("--kinds", nargs="*", default=["mamba", "mamba2"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode-width", type=int, default=128)
    parser.add_argument("--decode-layers", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"{'model':<8} {'what (ms unless said)':<32} {'theirs':>9} {'ours':>9}   ratio: median (least to largest)"
    )
    for kind in options.kinds:
        report_training(kind, options)
        report_decoding(kind, options)


if __name__ == "__main__":
    main()
