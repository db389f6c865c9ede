"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 §2.1).

    c_t = norm(W^DKV x_t)                      what is cached, r numbers a token instead of 2·h·e
    k_t,i = [W_i^UK c_t ; rotate(W^KR x_t)],   v_t,i = W_i^UV c_t
    q_t,i = [W_i^UQ c'_t ; rotate(W_i^QR c'_t)],   c'_t = norm(W^DQ x_t), or x_t where there is no q_rank
    score = q·k / √(e + p)

Keys and values are low-rank maps of one small latent per token. A rotation would stand between W^UQ and W^UK, so
position goes by extra dimensions of its own (`d_rotary`), whose key all heads share.

With a cache the keys and values are never made: W^UK moves to the query's side and W^UV behind the mixture
("absorbed"), which leaves multi-query attention over the latents themselves. Both ways give the same values. As in
DeepSeek's published models the two latents are normalized by RMSNorm, which the paper states in its §3.1.2.

Cost of the cache: (r + d_rotary) numbers a token and layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import torch
from annotated_types import Ge, Gt, Lt
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ...base.attention import MultiHeadAttentionConfig
from ...base.cache import KeyValueCache
from ...base.sockets import Config, Context, Enhancement, Layer, MixerConfig, OutputProjection, Scoring
from ..compose import replace_parts
from ..normalization.rms_norm import RMSNorm
from .grouped_query import GroupedQueryAttentionConfig

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class MultiHeadLatentAttentionConfig(MixerConfig):
    """Self-attention through a latent vector per token.

    kv_rank: the width of the latent that is cached. q_rank: of the queries' latent; null for none. d_content,
    d_rotary, d_value: the widths of a head's unrotated part, rotated part and value. scale: of the products, null being
    1/√(d_content + d_rotary); DeepSeek multiplies it by YaRN's factor, squared.
    """

    kind: ClassVar[str] = "multi_head_latent_attention"
    n_heads: Annotated[int, Ge(1)] = 8
    kv_rank: Annotated[int, Ge(1)] = 128
    q_rank: Annotated[int, Ge(1)] | None = None
    d_content: Annotated[int, Ge(1)] = 64
    d_rotary: Annotated[int, Ge(2)] = 32
    d_value: Annotated[int, Ge(1)] = 64
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    scale: Annotated[float, Gt(0)] | None = None

    def build(self, d_model: int) -> MultiHeadLatentAttention:
        return MultiHeadLatentAttention(d_model, self)


class MultiHeadLatentAttention(Layer):
    """Self-attention whose keys and values are maps of one cached latent per token."""

    def __init__(self, d_model: int, config: MultiHeadLatentAttentionConfig) -> None:
        super().__init__()
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.widths = [config.d_content, config.d_rotary]
        self.scale = sum(self.widths) ** -0.5 if config.scale is None else config.scale
        q_width = d_model if config.q_rank is None else config.q_rank
        self.q_down_proj = nn.Identity() if config.q_rank is None else nn.Linear(d_model, q_width, bias=False)
        self.q_norm = nn.Identity() if config.q_rank is None else RMSNorm(q_width)
        self.q_up_proj = nn.Linear(q_width, self.n_heads * sum(self.widths), bias=False)
        self.kv_down_proj = nn.Linear(d_model, config.kv_rank, bias=False)
        self.k_rotary_proj = nn.Linear(d_model, config.d_rotary, bias=False)
        self.kv_norm = RMSNorm(config.kv_rank)
        self.k_up_proj = nn.Linear(config.kv_rank, self.n_heads * config.d_content, bias=False)
        self.v_up_proj = nn.Linear(config.kv_rank, self.n_heads * config.d_value, bias=False)
        self.out_proj = OutputProjection(self.n_heads * config.d_value, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Context, state: KeyValueCache | None = None
    ) -> Float[Tensor, "b t d"]:
        """Attend from each token to those it may see in the same sequence."""
        queries = self.q_up_proj(self.q_norm(self.q_down_proj(x)))
        content, turned = rearrange(queries, "b t (h e) -> b h t e", h=self.n_heads).split(
            self.widths, dim=-1
        )
        latent = rearrange(self.kv_norm(self.kv_down_proj(x)), "b t r -> b 1 t r")
        shared = rearrange(self.k_rotary_proj(x), "b t p -> b 1 t p")
        turned, shared = context.position.rotate(turned, shared, context.layout)
        if state is None:
            mixed = self._expanded(content, turned, latent, shared, context)
        else:
            mixed = self._absorbed(content, turned, latent, shared, context, state)
        return self.out_proj(rearrange(mixed, "b h t e -> b t (h e)"))  # type: ignore[no-any-return]

    def _expanded(
        self, content: Tensor, turned: Tensor, latent: Tensor, shared: Tensor, context: Context
    ) -> Float[Tensor, "b h t _"]:
        """With every head's keys and values made: fewer operations where there are many queries."""
        k = rearrange(self.k_up_proj(latent[:, 0]), "b s (h e) -> b h s e", h=self.n_heads)
        v = rearrange(self.v_up_proj(latent[:, 0]), "b s (h e) -> b h s e", h=self.n_heads)
        k = torch.cat([k, shared.expand(-1, self.n_heads, -1, -1)], dim=-1)
        q = torch.cat([content, turned], dim=-1)
        return context.execution.kernel(q, k, v, context.pairs, self._scoring())

    def _absorbed(
        self,
        content: Tensor,
        turned: Tensor,
        latent: Tensor,
        shared: Tensor,
        context: Context,
        state: KeyValueCache,
    ) -> Float[Tensor, "b h t _"]:
        """On the latents themselves, as keys and values that all heads share: nothing is made per cached token."""
        shared, latent, keys = state.append(shared, latent, context.layout)
        to_keys = rearrange(self.k_up_proj.weight, "(h e) r -> h e r", h=self.n_heads)
        to_values = rearrange(self.v_up_proj.weight, "(h e) r -> h e r", h=self.n_heads)
        q = torch.cat([torch.einsum("bhte,her->bhtr", content, to_keys.to(content.dtype)), turned], dim=-1)
        k = torch.cat([latent, shared], dim=-1)
        mixed = context.execution.kernel(q, k, latent, context.pair(keys), self._scoring())
        return torch.einsum("bhtr,her->bhte", mixed, to_values.to(mixed.dtype))

    def _scoring(self) -> Scoring:
        return Scoring(self.scale, self.dropout if self.training else 0.0)

    def initial_state(self) -> KeyValueCache:
        return KeyValueCache()


def multi_head_latent(
    kv_rank: int = 128, q_rank: int | None = None, d_content: int = 64, d_rotary: int = 32, d_value: int = 64
) -> Enhancement:
    """Replace every self-attention by latent attention with as many heads."""

    def change(
        part: MultiHeadAttentionConfig | GroupedQueryAttentionConfig,
    ) -> MultiHeadLatentAttentionConfig:
        return MultiHeadLatentAttentionConfig(
            part.n_heads, kv_rank, q_rank, d_content, d_rotary, d_value, part.dropout
        )

    def apply(config: C) -> C:
        changed = replace_parts(config, MultiHeadAttentionConfig, change)
        return replace_parts(changed, GroupedQueryAttentionConfig, change)

    return apply
