"""Blocks as published families wire them, whatever those call their parts.

Attention and feed-forward follow one another, or stand side by side under one norm or two (`Order`); the paths of our
parts follow from that. Queries, keys and values may be fused into one map, group by group (`fused`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from ...base.feed_forward import PlainFeedForwardConfig, ReluFeedForwardConfig
from ...base.normalization import NoNormConfig
from ...base.sockets import FeedForwardConfig, MixerConfig, NormConfig
from ...base.stack import BlockConfig
from ...base.wiring import PreNormConfig
from ...enhancements.architecture.parallel import ParallelConfig
from ...enhancements.feed_forward.gelu import Form, GELUFeedForwardConfig
from .attributes import Attributes
from .family import require
from .weights import Rule, linear

Order = Literal["sequential", "shared norm", "two norms"]
FORMS: dict[str, Form] = {
    "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf", "gelu_python": "erf",
    "quick_gelu": "quick",
}  # fmt: skip
NAMES = {"tanh": "gelu_new", "erf": "gelu", "quick": "quick_gelu"}


@dataclass(frozen=True)
class Parts:
    """What a pre-norm block is made of; `dropout` falls on each branch."""

    mixer: MixerConfig
    feed_forward: FeedForwardConfig
    norm: NormConfig
    dropout: float = 0.0
    order: Order = "sequential"

    def block(self) -> BlockConfig:
        """The block that is made of these."""
        wiring = PreNormConfig(self.dropout)
        if self.order == "sequential":
            return BlockConfig(self.mixer, self.feed_forward, wiring=wiring, norm=self.norm)
        alone = NoNormConfig()
        inner, outer = (alone, self.norm) if self.order == "shared norm" else (self.norm, alone)
        return BlockConfig(
            ParallelConfig(self.mixer, self.feed_forward, inner), None, wiring=wiring, norm=outer
        )


def parts_of(block: Any) -> Parts:
    """Return what a block is made of; `OtherFamilyError` unless it is a pre-norm block of two sub-layers."""
    require(isinstance(block, BlockConfig), "its blocks are not attention and feed-forward")
    require(isinstance(block.wiring, PreNormConfig), "it is not pre-norm")
    dropout = block.wiring.dropout
    if not isinstance(block.mixer, ParallelConfig):
        require(block.mixer and block.feed_forward, "its blocks are not attention and feed-forward")
        return Parts(block.mixer, block.feed_forward, block.norm, dropout)
    pair = block.mixer
    shared = isinstance(pair.norm, NoNormConfig)
    norm, order = (block.norm, "shared norm") if shared else (pair.norm, "two norms")
    return Parts(pair.mixer, pair.feed_forward, norm, dropout, order)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Paths:
    """Where the parts of a layer stand in our model; the norms are one where they are shared."""

    mixer: str
    feed_forward: str
    mixer_norm: str
    feed_forward_norm: str


def paths_of(layer: int, order: Order) -> Paths:
    """Return where the parts of a layer stand."""
    block = f"stack.blocks.{layer}"
    if order == "sequential":
        branches = f"{block}.mixer.branch", f"{block}.feed_forward.branch"
        return Paths(*branches, f"{block}.mixer.norm", f"{block}.feed_forward.norm")
    pair = f"{block}.mixer.branch"
    if order == "shared norm":
        return Paths(f"{pair}.mixer", f"{pair}.feed_forward", f"{block}.mixer.norm", f"{block}.mixer.norm")
    return Paths(f"{pair}.mixer", f"{pair}.feed_forward", f"{pair}.mixer_norm", f"{pair}.feed_forward_norm")


def read_feed_forward(
    attributes: Attributes, name: str, default: str, d_ff: int, bias: bool = True
) -> PlainFeedForwardConfig:
    """Return the plain network whose non-linearity the attribute `name` says."""
    function = attributes.take(name, str, default)
    if function == "relu":
        return ReluFeedForwardConfig(d_ff, bias=bias)
    if function not in FORMS:
        raise attributes.fault(f"has {name} {function!r}, and only relu, {', '.join(FORMS)} can be loaded")
    return GELUFeedForwardConfig(d_ff, bias=bias, form=FORMS[function])


def write_feed_forward(feed_forward: FeedForwardConfig) -> str:
    """Return the name of a plain network's non-linearity; `OtherFamilyError` where it has none of these."""
    if isinstance(feed_forward, GELUFeedForwardConfig):
        return NAMES[feed_forward.form]
    require(isinstance(feed_forward, ReluFeedForwardConfig), "its feed-forward network has no GELU or ReLU")
    return "relu"


def either(attributes: Attributes, kind: type, names: Sequence[str], *default: Any) -> Any:
    """Take an attribute that goes by several names, of which all that are there must say the same."""
    there = [name for name in names if attributes.has(name)]
    value = attributes.take(there[0] if there else names[0], kind, *default)
    for other in there[1:]:
        attributes.only(other, value)
    return value


def fused(theirs: str, attention: str, groups: int, d_head: int, bias: bool) -> list[Rule]:
    """Queries, keys and values in one map: of each group of heads the queries, then the key, then the value."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [
        Rule(
            (f"{theirs}.{kind}",),
            tuple(f"{attention}.{name}_proj.{kind}" for name in "qkv"),
            _split(groups, d_head),
            _fuse(groups, d_head),
        )
        for kind in kinds
    ]


def projections(theirs: str, attention: str, out: str, bias: bool, out_bias: bool) -> list[Rule]:
    """Queries, keys and values each in a map of its own, and the output's under a name of its own."""
    found = linear(f"{theirs}.{out}", f"{attention}.out_proj", out_bias)
    for name in "qkv":
        found += linear(f"{theirs}.{name}_proj", f"{attention}.{name}_proj", bias)
    return found


def _split(groups: int, d_head: int) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    def read(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        grouped = rearrange(tensors[0], "(g n e) ... -> g n e ...", g=groups, e=d_head)
        three = grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:]
        return [rearrange(one, "g n e ... -> (g n e) ...") for one in three]

    return read


def _fuse(groups: int, d_head: int) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    def write(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        three = [rearrange(one, "(g n e) ... -> g n e ...", g=groups, e=d_head) for one in tensors]
        return [rearrange(torch.cat(three, dim=1), "g n e ... -> (g n e) ...")]

    return write


def only_head_of_another_task(attributes: Attributes) -> None:
    """Pass over what says how hidden states are summarized or classified, which the map to logits does not use."""
    for name in ("summary_type", "summary_activation"):
        attributes.take(name, str, None)
    for name in ("summary_use_proj", "summary_proj_to_labels"):
        attributes.take(name, bool, None)
    for name in ("summary_first_dropout", "classifier_dropout"):
        attributes.take(name, float, None)


def only_generation(attributes: Attributes) -> None:
    """Pass over what older releases say of how to write text, which decoding is told by its own arguments."""
    for name in ("max_length", "min_length", "num_beams", "num_return_sequences", "no_repeat_ngram_size"):
        attributes.take(name, int, None)
    for name in ("length_penalty", "repetition_penalty", "temperature"):
        attributes.take(name, float, None)
    for name in ("early_stopping", "do_sample", "force_bos_token_to_be_generated"):
        attributes.take(name, bool, None)
    attributes.take("bad_words_ids", list, None)
