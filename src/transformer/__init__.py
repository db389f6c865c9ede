"""Transformer From Scratch: the Transformer and its modern family, each idea written once and proved.

The public names are looked up on first use, so `import transformer` alone loads no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .interop import load as load
    from .models import BERT as BERT
    from .models import GPT as GPT
    from .models import T5 as T5
    from .models import LLaMA as LLaMA
    from .models import Mamba as Mamba
    from .models import Transformer as Transformer

_HOMES = {
    "BERT": ".models",
    "GPT": ".models",
    "T5": ".models",
    "LLaMA": ".models",
    "Mamba": ".models",
    "Transformer": ".models",
    "load": ".interop",
}

__all__ = ["BERT", "GPT", "T5", "LLaMA", "Mamba", "Transformer", "load"]


def __getattr__(name: str) -> object:
    """Import a public name from the module it lives in."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    if name.startswith("__"):  # asked for by Python's own machinery, which needs no advice
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from difflib import get_close_matches

    lower = {public.lower(): public for public in __all__}
    near = [lower[match] for match in get_close_matches(name.lower(), lower, n=1)]
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(__all__)}"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
