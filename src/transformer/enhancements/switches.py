"""The one table of flags: `use_rope=True` at a constructor, in a config file, on the command line or in a study.

Flags exist only here, at the door: each stands for an enhancement (config → config) or a choice of execution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TypedDict, TypeVar

from ..base.attention import scaled_dot_product_attention
from ..base.sockets import Config, Enhancement, Execution
from .attention.fused import fused_attention
from .compose import enhance
from .feed_forward.gelu import gelu
from .feed_forward.glu import bilinear, geglu, glu, reglu, swiglu
from .feed_forward.mish import mish
from .feed_forward.relu_squared import relu_squared
from .feed_forward.silu import silu
from .no_bias import no_bias
from .normalization.pre_norm import pre_norm
from .normalization.rms_norm import rms_norm
from .position.rope import rope

C = TypeVar("C", bound=Config)


class Switches(TypedDict, total=False):
    """What each flag does is said in `SWITCHES`."""

    use_flash_attention: bool
    use_gradient_checkpointing: bool
    use_pre_norm: bool
    use_rms_norm: bool
    use_rope: bool
    use_no_bias: bool
    use_gelu: bool
    use_quick_gelu: bool
    use_relu_squared: bool
    use_silu: bool
    use_mish: bool
    use_glu: bool
    use_bilinear: bool
    use_reglu: bool
    use_geglu: bool
    use_swiglu: bool


@dataclass(frozen=True)
class Switch:
    """One flag: what it changes of a model, or of how the model is computed, in words and as a function."""

    doc: str
    enhancement: Enhancement | None = None
    execution: Callable[[Execution], Execution] | None = None


SWITCHES: Mapping[str, Switch] = MappingProxyType(
    {
        "use_pre_norm": Switch("normalize the input of each sub-layer (arXiv 2002.04745)", pre_norm()),
        "use_rms_norm": Switch("RMSNorm in place of LayerNorm (arXiv 1910.07467)", rms_norm()),
        "use_rope": Switch("rotary positions in place of the stack's scheme (arXiv 2104.09864)", rope()),
        # before the gates, which look at the biases of the network whose number of parameters they match
        "use_no_bias": Switch("no biases in linear maps (arXiv 2204.02311)", no_bias()),
        "use_gelu": Switch("GELU in place of another activation (arXiv 1606.08415)", gelu()),
        "use_quick_gelu": Switch("GELU as x·σ(1.702x) (arXiv 1606.08415)", gelu("quick")),
        "use_relu_squared": Switch("the square of ReLU as activation (arXiv 2109.08668)", relu_squared()),
        "use_silu": Switch("SiLU, or Swish, as activation (arXiv 1710.05941)", silu()),
        "use_mish": Switch("Mish as activation (arXiv 1908.08681)", mish()),
        "use_glu": Switch("feed-forward gated by a sigmoid, as many parameters (arXiv 2002.05202)", glu()),
        "use_bilinear": Switch(
            "feed-forward gated linearly, as many parameters (arXiv 2002.05202)", bilinear()
        ),
        "use_reglu": Switch("feed-forward gated by ReLU, as many parameters (arXiv 2002.05202)", reglu()),
        "use_geglu": Switch("feed-forward gated by GELU, as many parameters (arXiv 2002.05202)", geglu()),
        "use_swiglu": Switch("feed-forward gated by SiLU, as many parameters (arXiv 2002.05202)", swiglu()),
        "use_flash_attention": Switch(
            "attention by PyTorch's fused kernels (arXiv 2205.14135)",
            execution=lambda execution: replace(execution, kernel=fused_attention),
        ),
        "use_gradient_checkpointing": Switch(
            "recompute activations in the backward pass (arXiv 1604.06174)",
            execution=lambda execution: replace(execution, checkpoint=True),
        ),
    }
)


def apply_switches(config: C, switches: Mapping[str, object]) -> tuple[C, Execution]:
    """Return the config with the switched-on enhancements, in the table's order, and the execution.

    Raises `TypeError` for an unknown flag, naming the nearest one, and for a value that is not True or False.
    """
    for name, value in switches.items():
        if name not in SWITCHES:
            near = get_close_matches(name, SWITCHES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"the switches are {', '.join(SWITCHES)}"
            raise TypeError(f"there is no switch {name!r}; {hint}")
        if not isinstance(value, bool):
            raise TypeError(f"{name} is switched by True or False, got {value!r}")
    chosen = [switch for name, switch in SWITCHES.items() if switches.get(name)]
    execution = Execution(scaled_dot_product_attention)
    for switch in chosen:
        if switch.execution is not None:
            execution = switch.execution(execution)
    return enhance(
        config, *(switch.enhancement for switch in chosen if switch.enhancement is not None)
    ), execution
