"""How a position scheme takes the place of another: what the enhancements in this folder share.

A scheme lives on the stack (`StackConfig.position`) or, where its terms depend on the query, in the mixers. Whichever
kind the last enhancement is of, it leaves none of the earlier one: `enhance(config, shaw(), alibi())` is
`enhance(config, alibi())`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, cast

from annotated_types import Ge, Lt

from ...base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from ...base.position import NoPositionConfig
from ...base.sockets import Config, MixerConfig, PositionConfig
from ...base.stack import StackConfig
from ...base.transformer import EncoderDecoderConfig
from ..attention.differential import DifferentialAttentionConfig
from ..compose import replace_parts

C = TypeVar("C", bound=Config)
StackEdit = Callable[[StackConfig], StackConfig]


@dataclass(frozen=True)
class RelativeAttentionConfig(MixerConfig):
    """Multi-head self-attention with relative terms of its own, as data: what its kinds share."""

    n_heads: Annotated[int, Ge(1)] = 8
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: bool = False

    def plain(self) -> MultiHeadAttentionConfig:
        """The attention without the relative terms."""
        return MultiHeadAttentionConfig(self.n_heads, self.dropout, self.bias)


def edit_stacks(config: C, decoder: StackEdit, encoder: StackEdit | None = None) -> C:
    """Change every stack; one that reads both ways by `encoder`, where it is given.

    Those are an encoder-decoder's encoder and the stack of a config whose kind is `encoder_only`.
    """
    encoder = encoder or decoder
    if isinstance(config, EncoderDecoderConfig):
        return cast(C, replace(config, encoder=encoder(config.encoder), decoder=decoder(config.decoder)))
    return replace_parts(config, StackConfig, encoder if config.kind == "encoder_only" else decoder)


def with_position(stack: StackConfig, position: PositionConfig) -> StackConfig:
    """The stack with this scheme and no other."""
    return replace(
        replace_parts(stack, RelativeAttentionConfig, RelativeAttentionConfig.plain), position=position
    )


def with_relative_attention(
    stack: StackConfig, attention: Callable[[MultiHeadAttentionConfig], RelativeAttentionConfig]
) -> StackConfig:
    """The stack with every multi-head self-attention made relative, and no other scheme.

    ValueError if there is none: other kinds of attention have no relative form here.
    """
    stack = with_position(stack, NoPositionConfig())
    relative = replace_parts(stack, MultiHeadAttentionConfig, attention)
    if relative == stack:
        mixers = sorted({part.kind for part in self_mixers(stack)})
        raise ValueError(
            "relative attention takes the place of multi_head_attention, but the stack has "
            f"{', '.join(mixers) or 'no mixer'}; leave out what changed its attention, or choose rope() or alibi()"
        )
    return relative


def heads_of(stack: StackConfig) -> int:
    """The number of heads of the stack's self-attention; ValueError unless there is one number for all its layers."""
    counts = {_scores(part) for part in self_mixers(stack) if hasattr(part, "n_heads")}
    if len(counts) != 1:
        found = f"layers of {' and '.join(map(str, sorted(counts)))} heads" if counts else "no heads"
        raise ValueError(
            f"a bias for each head needs one number of heads for the whole stack, which has {found}; "
            "say n_heads, or give each block a position of its own"
        )
    return counts.pop()


def _scores(mixer: Any) -> int:
    """How many heads of scores a mixer has: differential attention, two for each of its heads."""
    heads: int = mixer.n_heads
    return 2 * heads if isinstance(mixer, DifferentialAttentionConfig) else heads


def self_mixers(value: Any) -> Iterator[Any]:
    """Every mixer in a tree of configs, from outside inward, apart from attention to another sequence."""
    if isinstance(value, CrossAttentionConfig):
        return
    if isinstance(value, MixerConfig):
        yield value
    if isinstance(value, tuple):
        for item in value:
            yield from self_mixers(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from self_mixers(getattr(value, field.name))
