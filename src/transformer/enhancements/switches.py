"""The one table of flags: `use_rope=True` at a constructor, in a config file, on the command line or in a study.

Flags exist only here, at the door: each stands for an enhancement (config → config) or a choice of execution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TypedDict, TypeVar

from ..base.attention import MultiHeadAttentionConfig
from ..base.feed_forward import PlainFeedForwardConfig
from ..base.sockets import Config, Enhancement, Execution
from .architecture.mixture_of_depths import mixture_of_depths
from .architecture.moe.mixture import mixture_of_experts
from .attention.delta_net import delta_net
from .attention.differential import differential
from .attention.gated_delta_net import gated_delta_net
from .attention.gated_linear import gated_linear_attention
from .attention.grouped_query import GroupedQueryAttentionConfig, grouped_query, multi_query
from .attention.kernels import best_attention
from .attention.linear import linear_attention
from .attention.multi_head_latent import multi_head_latent
from .attention.naive import naive_attention
from .attention.performer import performer
from .attention.qk_norm import qk_norm
from .attention.retention import retention
from .attention.sinks import attention_sinks
from .attention.sliding_window import sliding_window
from .attention.soft_cap import soft_cap
from .compose import enhance, has_part
from .feed_forward.gelu import gelu
from .feed_forward.glu import GatedFeedForwardConfig, bilinear, geglu, glu, reglu, swiglu
from .feed_forward.mish import mish
from .feed_forward.relu_squared import relu_squared
from .feed_forward.silu import silu
from .no_bias import no_bias
from .normalization.deep_norm import deep_norm
from .normalization.dynamic_tanh import dynamic_tanh
from .normalization.group_norm import group_norm
from .normalization.layer_scale import layer_scale
from .normalization.post_norm import post_norm
from .normalization.post_sublayer_norm import post_sublayer_norm
from .normalization.pre_norm import pre_norm
from .normalization.resi_dual import resi_dual
from .normalization.rms_norm import rms_norm
from .normalization.sandwich_norm import sandwich_norm
from .normalization.scale_norm import scale_norm
from .position.alibi import alibi
from .position.rope import rope
from .position.shaw import shaw
from .position.t5_bias import t5_bias
from .position.transformer_xl import transformer_xl
from .position.xpos import xpos

C = TypeVar("C", bound=Config)


class Switches(TypedDict, total=False):
    """What each flag does is said in `SWITCHES`."""

    use_gqa: bool
    use_mqa: bool
    use_mla: bool
    use_differential_attention: bool
    use_linear_attention: bool
    use_performer: bool
    use_retention: bool
    use_gated_linear_attention: bool
    use_delta_net: bool
    use_gated_delta_net: bool
    use_sliding_window: bool
    use_attention_sinks: bool
    use_qk_norm: bool
    use_soft_cap: bool
    use_flash_attention: bool
    use_gradient_checkpointing: bool
    use_pre_norm: bool
    use_rms_norm: bool
    use_post_norm: bool
    use_sandwich_norm: bool
    use_post_sublayer_norm: bool
    use_deep_norm: bool
    use_resi_dual: bool
    use_layer_scale: bool
    use_scale_norm: bool
    use_group_norm: bool
    use_dyt: bool
    use_rope: bool
    use_xpos: bool
    use_alibi: bool
    use_t5_bias: bool
    use_relative_position: bool
    use_transformer_xl: bool
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
    use_moe: bool
    use_mixture_of_depths: bool


@dataclass(frozen=True)
class Switch:
    """One flag: what it changes of a model, or of how the model is computed, in words and as a function.

    site: what it decides as a whole, such as the position scheme: of two switches with one site only one can be on.
    needs: the kinds of part that it changes; a model that has none of them is refused.
    """

    doc: str
    enhancement: Enhancement | None = None
    execution: Callable[[Execution], Execution] | None = None
    site: str | None = None
    needs: tuple[type[Config], ...] = ()


ATTENTION = (MultiHeadAttentionConfig, GroupedQueryAttentionConfig)

SWITCHES: Mapping[str, Switch] = MappingProxyType(
    {
        # attention first: what follows reads its heads
        "use_gqa": Switch(
            "a quarter as many heads of keys and values (arXiv 2305.13245)", grouped_query(), site="attention"
        ),
        "use_mqa": Switch(
            "one head of keys and values for all queries (arXiv 1911.02150)", multi_query(), site="attention"
        ),
        "use_mla": Switch(
            "keys and values through one cached latent (arXiv 2405.04434)",
            multi_head_latent(),
            site="attention",
        ),
        "use_differential_attention": Switch(
            "the difference of two attention maps (arXiv 2410.05258)", differential(), site="attention"
        ),
        "use_linear_attention": Switch(
            "attention by features elu + 1, in linear time (arXiv 2006.16236)",
            linear_attention(),
            site="attention",
        ),
        "use_performer": Switch(
            "attention by random features, in linear time (arXiv 2009.14794)", performer(), site="attention"
        ),
        "use_retention": Switch(
            "retention, fixed decays, where causal (arXiv 2307.08621)", retention(), site="attention"
        ),
        "use_gated_linear_attention": Switch(
            "linear attention with learned decays, where causal (arXiv 2312.06635)",
            gated_linear_attention(),
            site="attention",
        ),
        "use_delta_net": Switch(
            "linear attention by the delta rule, where causal (arXiv 2406.06484)",
            delta_net(),
            site="attention",
        ),
        "use_gated_delta_net": Switch(
            "the delta rule with learned decays, where causal (arXiv 2412.06464)",
            gated_delta_net(),
            site="attention",
        ),
        "use_sliding_window": Switch(
            "attention to the 256 nearest positions (arXiv 2004.05150, 2310.06825)",
            sliding_window(),
            needs=ATTENTION,
        ),
        "use_attention_sinks": Switch(
            "a learned place for unneeded attention (arXiv 2508.10925)", attention_sinks(), needs=ATTENTION
        ),
        "use_qk_norm": Switch(
            "normalize queries and keys (arXiv 2010.04245, 2302.05442)", qk_norm(), needs=ATTENTION
        ),
        "use_soft_cap": Switch(
            "keep attention scores within ±50 (arXiv 1611.09940, 2408.00118)", soft_cap(), needs=ATTENTION
        ),
        "use_pre_norm": Switch(
            "normalize the input of each sub-layer (arXiv 2002.04745)", pre_norm(), site="place of the norms"
        ),
        "use_rms_norm": Switch("RMSNorm in place of LayerNorm (arXiv 1910.07467)", rms_norm(), site="norm"),
        "use_post_norm": Switch(
            "normalize after each addition, as in 2017 (arXiv 1706.03762)",
            post_norm(),
            site="place of the norms",
        ),
        "use_sandwich_norm": Switch(
            "normalize the input and the output of each sub-layer (arXiv 2105.13290)",
            sandwich_norm(),
            site="place of the norms",
        ),
        "use_post_sublayer_norm": Switch(
            "normalize the output of each sub-layer before it is added, as OLMo 2 (arXiv 2501.00656)",
            post_sublayer_norm(),
            site="place of the norms",
        ),
        "use_deep_norm": Switch(
            "post-norm scaled by the number of layers (arXiv 2203.00555)",
            deep_norm(),
            site="place of the norms",
        ),
        "use_resi_dual": Switch(
            "a post-norm and a pre-norm stream at once (arXiv 2304.14802)",
            resi_dual(),
            site="place of the norms",
        ),
        "use_layer_scale": Switch(
            "pre-norm with a small learned gain on each sub-layer (arXiv 2103.17239)",
            layer_scale(),
            site="place of the norms",
        ),
        "use_scale_norm": Switch(
            "ScaleNorm in place of every norm (arXiv 1910.05895)", scale_norm(), site="norm"
        ),
        "use_group_norm": Switch(
            "normalize each token in groups of channels (arXiv 1803.08494)", group_norm(), site="norm"
        ),
        "use_dyt": Switch(
            "dynamic tanh in place of every norm (arXiv 2503.10622)", dynamic_tanh(), site="norm"
        ),
        "use_rope": Switch(
            "rotary positions in place of the stack's scheme (arXiv 2104.09864)", rope(), site="position"
        ),
        "use_xpos": Switch(
            "rotary positions that fade with distance (arXiv 2212.10554)", xpos(), site="position"
        ),
        "use_alibi": Switch(
            "scores lowered in proportion to distance (arXiv 2108.12409)", alibi(), site="position"
        ),
        "use_t5_bias": Switch(
            "a learned bias for each bucket of distances (arXiv 1910.10683)", t5_bias(), site="position"
        ),
        "use_relative_position": Switch(
            "a learned vector for each clipped distance (arXiv 1803.02155)", shaw(), site="position"
        ),
        "use_transformer_xl": Switch(
            "attention by content and by the sinusoid of the distance (arXiv 1901.02860)",
            transformer_xl(),
            site="position",
        ),
        # before the gates, which look at the biases of the network whose number of parameters they match
        "use_no_bias": Switch("no biases in linear maps (arXiv 2204.02311)", no_bias()),
        "use_gelu": Switch(
            "GELU in place of another activation (arXiv 1606.08415)", gelu(), site="feed-forward network"
        ),
        "use_quick_gelu": Switch(
            "GELU as x·σ(1.702x) (arXiv 1606.08415)", gelu("quick"), site="feed-forward network"
        ),
        "use_relu_squared": Switch(
            "the square of ReLU as activation (arXiv 2109.08668)", relu_squared(), site="feed-forward network"
        ),
        "use_silu": Switch(
            "SiLU, or Swish, as activation (arXiv 1710.05941)", silu(), site="feed-forward network"
        ),
        "use_mish": Switch("Mish as activation (arXiv 1908.08681)", mish(), site="feed-forward network"),
        "use_glu": Switch(
            "feed-forward gated by a sigmoid, as many parameters (arXiv 2002.05202)",
            glu(),
            site="feed-forward network",
        ),
        "use_bilinear": Switch(
            "feed-forward gated linearly, as many parameters (arXiv 2002.05202)",
            bilinear(),
            site="feed-forward network",
        ),
        "use_reglu": Switch(
            "feed-forward gated by ReLU, as many parameters (arXiv 2002.05202)",
            reglu(),
            site="feed-forward network",
        ),
        "use_geglu": Switch(
            "feed-forward gated by GELU, as many parameters (arXiv 2002.05202)",
            geglu(),
            site="feed-forward network",
        ),
        "use_swiglu": Switch(
            "feed-forward gated by SiLU, as many parameters (arXiv 2002.05202)",
            swiglu(),
            site="feed-forward network",
        ),
        # after the networks that it makes experts of
        "use_moe": Switch(
            "8 experts in place of each feed-forward network, of which a token uses 2 (arXiv 2401.04088)",
            mixture_of_experts(),
            needs=(PlainFeedForwardConfig, GatedFeedForwardConfig),
        ),
        # around whole blocks, whatever is in them by now
        "use_mixture_of_depths": Switch(
            "an eighth of the tokens through every other block (arXiv 2404.02258)", mixture_of_depths()
        ),
        "use_flash_attention": Switch(
            "attention by the fastest kernel for the device and the case (arXiv 2205.14135)",
            execution=lambda execution: replace(execution, kernel=best_attention),
        ),
        "use_gradient_checkpointing": Switch(
            "recompute activations in the backward pass (arXiv 1604.06174)",
            execution=lambda execution: replace(execution, checkpoint=True),
        ),
    }
)


def apply_switches(config: C, switches: Mapping[str, object]) -> tuple[C, Execution]:
    """Return the config with the switched-on enhancements, in the table's order, and the execution.

    Raises `TypeError` for an unknown flag, naming the nearest one, for a value that is not True or False, and for
    two flags that exclude each other, and for one that finds nothing in the model to change.
    """
    for name, value in switches.items():
        if name not in SWITCHES:
            near = get_close_matches(name, SWITCHES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"the switches are {', '.join(SWITCHES)}"
            raise TypeError(f"there is no switch {name!r}; {hint}")
        if not isinstance(value, bool):
            raise TypeError(f"{name} is switched by True or False, got {value!r}")
    chosen = [name for name in SWITCHES if switches.get(name)]
    _refuse_contradictions(chosen)
    execution = Execution(naive_attention)
    for name in chosen:
        switch = SWITCHES[name]
        _refuse_idleness(config, name)
        config = enhance(config, *([] if switch.enhancement is None else [switch.enhancement]))
        execution = execution if switch.execution is None else switch.execution(execution)
    return config, execution


def _refuse_contradictions(names: list[str]) -> None:
    """Refuse two flags that decide the same thing."""
    deciders: dict[str, str] = {}
    for name in names:
        site = SWITCHES[name].site
        if site is not None and site in deciders:
            raise TypeError(f"{deciders[site]} and {name} both decide the {site}; switch one of them off")
        if site is not None:
            deciders[site] = name


def _refuse_idleness(config: Config, name: str) -> None:
    """Refuse a flag that would change nothing, because the part it is about is not there."""
    needs = SWITCHES[name].needs
    if needs and not any(has_part(config, part) for part in needs):
        kinds = " or ".join(part.kind for part in needs)
        raise TypeError(f"{name} has nothing to change: this model has no {kinds}; leave it off")
