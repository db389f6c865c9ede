"""The public constructors: switches, names of weights, both spellings, compilation."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import family_config
from transformer.enhancements import (
    SWITCHES,
    best_attention,
    enhance,
    naive_attention,
    pre_norm,
    rms_norm,
    rope,
)
from transformer.enhancements.position.rope import RotaryPosition
from transformer.models import (
    BERT,
    FAMILIES,
    GPT,
    KINDS,
    T5,
    LLaMA,
    Mamba,
    Model,
    Transformer,
    build,
    gpt,
    palm,
    transformer,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"vocab_size": 17, "d_model": 16, "n_heads": 2, "n_layers": 2}


def test_the_quick_start_models_build_at_full_size() -> None:
    with torch.device("meta"):
        base = Transformer(vocab_size=10000, d_model=512, n_heads=8, n_layers=6)
        model = GPT(50000, 768, 12, 12, use_flash_attention=True, use_rope=True, use_rms_norm=True)
        tokens = torch.zeros(2, 9, dtype=torch.long)
        assert base(tokens, tokens[:, :5]).shape == (2, 5, 10000)
        assert model(tokens).shape == (2, 9, 50000)
    assert model.execution.kernel is best_attention
    assert isinstance(model.stack.position, RotaryPosition)
    assert model.config == enhance(gpt(50000, 768, 12, 12), rope(), rms_norm())


def test_gpt2_has_its_published_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT().parameters()) == 124_439_808


def test_every_switch_alone_and_all_together_run() -> None:
    tokens = torch.randint(17, (2, 6))
    together: dict[str, str] = {}
    for name, switch in SWITCHES.items():
        together.setdefault(switch.site or name, name)  # of those that exclude each other, the first
    for names in [[name] for name in SWITCHES] + [list(together.values())]:
        for model, inputs in ((GPT, (tokens,)), (Transformer, (tokens, tokens))):
            out = model(**SMALL, **dict.fromkeys(names, True))(*inputs)
            assert out.shape == (2, 6, 17) and out.isfinite().all()
            out.sum().backward()


def test_switches_are_enhancements_and_execution() -> None:
    switched = Transformer(
        **SMALL, use_rope=True, use_pre_norm=True, use_gradient_checkpointing=True, use_gelu=False
    )
    assert switched.config == enhance(transformer(**SMALL), pre_norm(), rope())
    assert switched.execution.checkpoint and switched.execution.kernel is naive_attention
    plain = Transformer(**SMALL, use_flash_attention=True, use_gradient_checkpointing=True)
    assert plain.config == Transformer(**SMALL).config == transformer(**SMALL)


@pytest.mark.parametrize("model", [GPT, Transformer])
def test_wrong_switches_are_refused_with_the_nearest(model: type) -> None:
    with pytest.raises(TypeError, match=r"^there is no switch 'use_rop'; did you mean 'use_rope'\?$"):
        model(**SMALL, use_rop=True)
    with pytest.raises(TypeError, match=r"^there is no switch 'xyz'; the switches are use_gqa, use_mqa, .*$"):
        model(**SMALL, xyz=True)
    with pytest.raises(TypeError, match=r"^use_rope is switched by True or False, got 'yes'$"):
        model(**SMALL, use_rope="yes")
    with pytest.raises(
        TypeError, match=r"^use_gqa and use_mqa both decide the attention; switch one of them off$"
    ):
        model(**SMALL, use_mqa=True, use_gqa=True)
    with pytest.raises(
        TypeError,
        match=r"^use_qk_norm has nothing to change: this model has no multi_head_attention or grouped",
    ):
        model(**SMALL, use_mla=True, use_qk_norm=True)
    with pytest.raises(TypeError, match=r"^there is no switch 'n_head'"):
        model(**SMALL, n_head=4)


def test_every_switch_is_documented_and_typed() -> None:
    from transformer.enhancements.switches import Switches

    assert set(Switches.__annotations__) == set(SWITCHES)
    for switch in SWITCHES.values():
        assert "arXiv" in switch.doc
        assert (switch.enhancement is None) != (switch.execution is None)


def test_a_family_is_a_config_and_a_config_is_a_model() -> None:
    classes: dict[str, Any] = {
        "bert": BERT, "gpt": GPT, "llama": LLaMA, "mamba": Mamba, "t5": T5, "transformer": Transformer
    }  # fmt: skip
    for name in FAMILIES:
        config = family_config(name, **SMALL)
        model = build(config)
        assert model.config == config and config.kind in KINDS
        if name not in classes:
            continue
        known = inspect.signature(FAMILIES[name]).parameters
        same = classes[name](**{key: size for key, size in {"d_head": 8, **SMALL}.items() if key in known})
        assert [n for n, _ in same.named_parameters()] == [n for n, _ in model.named_parameters()]


def names_of_weights() -> str:
    """Every name and shape in the state dicts of small models, one a line."""
    sizes: dict[str, Any] = {
        "vocab_size": 17,
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 1,
        "d_ff": 24,
        "max_seq_len": 10,
    }
    models: dict[str, Model] = {
        "Transformer": Transformer(**sizes),
        "Transformer pre_norm": Transformer(**sizes, use_pre_norm=True),
        "GPT": GPT(**sizes),
        "GPT rope rms_norm": GPT(**sizes, use_rope=True, use_rms_norm=True),
    }
    del sizes["max_seq_len"]
    models |= {"T5": T5(**sizes), "T5 1.1": T5(**sizes, version="1.1")}
    models["PaLM"] = build(palm(**sizes))
    lines = []
    for title, model in models.items():
        lines += [f"# {title}", *(f"{name} {tuple(x.shape)}" for name, x in model.state_dict().items())]
    return "\n".join(lines) + "\n"


def test_names_of_weights_are_frozen() -> None:
    """Checkpoints are read by these names: a change here breaks every model that anybody has saved."""
    frozen = Path(__file__).with_name("state_dict_keys.txt").read_text(encoding="utf-8")
    assert names_of_weights() == frozen


def test_the_other_spelling_of_the_package_works_from_the_repository() -> None:
    code = (
        "import torch\n"
        "from src.transformer.base import Transformer, MultiHeadAttention\n"
        "from src.transformer.models import GPT\n"
        "x = torch.zeros(1, 3, dtype=torch.long)\n"
        "assert Transformer(vocab_size=7, d_model=8, n_heads=2, n_layers=1)(x, x).shape == (1, 3, 7)\n"
        "assert GPT(vocab_size=7, d_model=8, n_heads=2, n_layers=1, use_rope=True)(x).shape == (1, 3, 7)\n"
        "assert MultiHeadAttention.__module__ == 'src.transformer.base.attention'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_contexts_and_models_take_the_masks_of_the_field() -> None:
    """1/0 integers and booleans are the same mask; a mask of ones is no mask."""
    model, tokens = GPT(**SMALL).eval(), torch.randint(17, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    assert torch.equal(model(tokens, mask), model(tokens, mask.bool()))
    torch.testing.assert_close(model(tokens, torch.ones_like(mask)), model(tokens), rtol=0, atol=1e-6)
    pair = Transformer(**SMALL).eval()
    assert torch.equal(pair(tokens, tokens, mask), pair(tokens, tokens, mask.bool()))
