"""A compiled step writes what the model writes, whatever its state, and is not compiled for every token.

The package is imported by its other spelling, as in tests/models/test_compile.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.transformer.generation import Compiled, generate
from src.transformer.models import ModelConfig, build, hybrid, mamba


@pytest.mark.parametrize(
    "config",
    [mamba(50, 16, 2), hybrid(50, 16, 2, 1, layers=("attention",), rope_base=10000.0)],
    ids=["mamba", "caches"],
)
def test_it_writes_the_same_from_a_few_graphs(config: ModelConfig) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, compiled_for = build(config).double().eval(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled_for.append(graph)
        return graph.forward

    fast = Compiled(model, backend=backend)
    prompt, mask = torch.randint(50, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    with torch._dynamo.config.patch(error_on_recompile=False, fail_on_recompile_limit_hit=True):
        found = generate(fast, prompt, 24, temperature=0.0, attention_mask=mask)
        assert torch.equal(found, generate(model, prompt, 24, temperature=0.0, attention_mask=mask))
        graphs = len(compiled_for)
        assert 1 <= graphs <= 6
        drawn = [generate(one, prompt, 30, top_k=9, seed=3, attention_mask=mask) for one in (fast, model)]
    assert torch.equal(*drawn)
    assert len(compiled_for) == graphs


def test_what_cannot_be_compiled_is_told() -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise RuntimeError("no compiler is to be found\nand so on")

    torch._dynamo.reset()
    fast = Compiled(build(mamba(50, 16, 1)), backend=backend)
    with pytest.raises(ValueError, match=r"cannot be compiled on this machine \(no compiler is to be found"):
        generate(fast, torch.zeros(1, 3, dtype=torch.long), 4)
