"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), with multi-query attention (arXiv 1911.02150).

Several query heads share one head of keys and values: h query heads, k key-value heads, k = h being the paper's
multi-head attention and k = 1 multi-query attention.

    head_i = Attention(Q W_i^Q, K W_⌊i·k/h⌋^K, V W_⌊i·k/h⌋^V)

Neighbouring query heads form a group (not every k-th one: the two differ in which published weights they fit).
The key-value cache shrinks by h/k: 2·k·e numbers per token and layer. The projections cost less too; the attention
itself costs the same.

This is also the one general attention of the project: the width of a head may be chosen freely, queries and keys may
be normalized (`qk_norm`), scores capped (`soft_cap`), and each head may have a sink (`sinks`); each of those ideas has
a file of its own beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from annotated_types import Ge, Gt, Lt
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from ...base.attention import MultiHeadAttention, MultiHeadAttentionConfig
from ...base.cache import KeyValueCache
from ...base.normalization import NoNormConfig
from ...base.sockets import (
    Config,
    Context,
    Enhancement,
    Layer,
    Layout,
    MixerConfig,
    NormConfig,
    OutputProjection,
    Pairs,
    Scoring,
)
from ..compose import replace_parts

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class GroupedQueryAttentionConfig(MixerConfig):
    """Self-attention whose heads may share keys and values.

    n_kv_heads: null is as many as `n_heads`. d_head: null is d_model / n_heads. bias: on the queries', keys' and
    values' projections; out_bias: on the output's, null being as `bias`. qk_norm: of queries and keys, of each head or
    of the whole projection, as `qk_norm_over` says. scale: of the products, null being 1/√d_head.
    """

    kind: ClassVar[str] = "grouped_query_attention"
    n_heads: Annotated[int, Ge(1)] = 8
    n_kv_heads: Annotated[int, Ge(1)] | None = None
    d_head: Annotated[int, Ge(1)] | None = None
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = False
    out_bias: bool | None = None
    qk_norm: NormConfig = NoNormConfig()
    soft_cap: Annotated[float, Gt(0)] | None = None
    sinks: bool = False
    scale: Annotated[float, Gt(0)] | None = None
    qk_norm_over: Literal["head", "projection"] = "head"

    def __post_init__(self) -> None:
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} cannot be shared out to n_kv_heads {self.n_kv_heads} equal groups; "
                f"the nearest n_kv_heads that divides it is {_nearest_divisor(self.n_heads, self.n_kv_heads)}"
            )

    def head_width(self, d_model: int) -> int:
        """The width of a head; ValueError if the model's cannot be split evenly."""
        if self.d_head is not None:
            return self.d_head
        if d_model % self.n_heads:
            near = _nearest_divisor(d_model, self.n_heads)
            raise ValueError(
                f"d_model {d_model} cannot be split into n_heads {self.n_heads} equal heads; "
                f"the nearest n_heads that divides it is {near}, or give d_head"
            )
        return d_model // self.n_heads

    def build_qk_norm(self, n_heads: int, d_head: int) -> nn.Module:
        """The norm of queries or keys in `n_heads` heads."""
        if self.qk_norm_over == "head" or isinstance(self.qk_norm, NoNormConfig):
            return self.qk_norm.build(d_head)
        return JoinedNorm(self.qk_norm.build(n_heads * d_head))

    def build(self, d_model: int) -> GroupedQueryAttention:
        return GroupedQueryAttention(d_model, self)


class JoinedNorm(nn.Module):
    """A norm over all heads of a token together, as OLMo 2 (arXiv 2501.00656) normalizes queries and keys."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "b h t e"]) -> Float[Tensor, "b h t e"]:
        """Normalize each token over the entries of its heads."""
        return _heads(self.norm(rearrange(x, "b h t e -> b t (h e)")), x.shape[1])


class GroupedQueryAttention(Layer):
    """Self-attention whose heads may share keys and values."""

    def __init__(self, d_model: int, config: GroupedQueryAttentionConfig) -> None:
        super().__init__()
        n_heads, n_kv_heads = config.n_heads, config.n_kv_heads or config.n_heads
        d_head = config.head_width(d_model)
        out_bias = config.bias if config.out_bias is None else config.out_bias
        self.n_heads, self.n_kv_heads, self.dropout = n_heads, n_kv_heads, config.dropout
        self.scale = d_head**-0.5 if config.scale is None else config.scale
        self.soft_cap = config.soft_cap
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=config.bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=config.bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=config.bias)
        self.out_proj = OutputProjection(n_heads * d_head, d_model, bias=out_bias)
        self.q_norm, self.k_norm = (config.build_qk_norm(n, d_head) for n in (n_heads, n_kv_heads))
        self.sinks = nn.Parameter(torch.zeros(n_heads)) if config.sinks else None

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: KeyValueCache | None = None
    ) -> Float[Tensor, "b t d"]:
        """Attend from each token to those it may see in the same sequence."""
        q = self.q_norm(_heads(self.q_proj(x), self.n_heads))
        k = self.k_norm(_heads(self.k_proj(x), self.n_kv_heads))
        v = _heads(self.v_proj(x), self.n_kv_heads)
        q, k = context.position.rotate(q, k, context.layout)
        keys = context.layout
        if state is not None:
            k, v, keys = state.append(k, v, keys)
        scoring = Scoring(self.scale, self.dropout if self.training else 0.0, self.soft_cap, self.sinks)
        mixed = context.execution.kernel(q, k, v, self.pairs(context, keys), scoring)
        return self.out_proj(rearrange(mixed, "b h t e -> b t (h e)"))  # type: ignore[no-any-return]

    def pairs(self, context: Context, keys: Layout) -> Pairs:
        """Who is scored against whom: under the stack's mask, unless a kind of attention has its own."""
        return context.pairs if keys is context.layout else context.pair(keys)

    def initial_state(self) -> KeyValueCache:
        return KeyValueCache()


def _heads(x: Float[Tensor, "b t d"], n_heads: int) -> Float[Tensor, "b h t e"]:
    return rearrange(x, "b t (h e) -> b h t e", h=n_heads)


def change_attention(
    change: Callable[[GroupedQueryAttentionConfig], GroupedQueryAttentionConfig],
) -> Enhancement:
    """Change every self-attention; the paper's becomes the general one, which it is with the defaults."""

    def generalize(part: MultiHeadAttentionConfig) -> GroupedQueryAttentionConfig:
        return GroupedQueryAttentionConfig(part.n_heads, dropout=part.dropout, bias=part.bias)

    def apply(config: C) -> C:
        general = replace_parts(config, MultiHeadAttentionConfig, generalize)
        return replace_parts(general, GroupedQueryAttentionConfig, change)

    return apply


def grouped_query(n_kv_heads: int | None = None) -> Enhancement:
    """Share keys and values in every self-attention; null is a quarter of the heads, or the nearest possible."""

    def change(part: GroupedQueryAttentionConfig) -> GroupedQueryAttentionConfig:
        groups = (
            _nearest_divisor(part.n_heads, max(1, part.n_heads // 4)) if n_kv_heads is None else n_kv_heads
        )
        return replace(part, n_kv_heads=groups)

    return change_attention(change)


def multi_query() -> Enhancement:
    """One head of keys and values for all heads of queries (Shazeer 2019, arXiv 1911.02150)."""
    return grouped_query(1)


@torch.no_grad()
def pool_heads(source: nn.Module, target: nn.Module) -> None:
    """Give `target`, which has fewer key-value heads, the weights of `source` (arXiv 2305.13245 §2.1).

    Keys' and values' projections are the means over the heads of each group; everything else is copied. The two
    models are otherwise alike. The paper goes on to train for 5 % of the first training's steps.
    ValueError if the two differ in more than the number of key-value heads.
    """
    weights = dict(source.state_dict())
    for path, module in target.named_modules():
        old = source.get_submodule(path) if isinstance(module, GroupedQueryAttention) else None
        if not isinstance(module, GroupedQueryAttention):
            continue
        if not isinstance(old, GroupedQueryAttention | MultiHeadAttention) or old.n_heads != module.n_heads:
            raise ValueError(
                f"{path or 'the source'} has other heads than the target; only keys and values can be pooled"
            )
        pooled = getattr(old, "n_kv_heads", old.n_heads) // module.n_kv_heads
        for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
            key = f"{path}.{name}" if path else name
            if key in weights:
                heads = rearrange(weights[key], "(k g e) ... -> k g e ...", k=module.n_kv_heads, g=pooled)
                weights[key] = rearrange(
                    reduce(heads, "k g e ... -> k e ...", "mean"), "k e ... -> (k e) ..."
                )
    target.load_state_dict(weights)


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: abs(n - wanted))
