"""Mamba and Mamba-2: language models of one mixer, without attention (arXiv 2312.00752 §3.4, 2405.21060 §7).

What Mamba changed of a decoder-only Transformer: a block is norm → Mamba → residual, with no feed-forward part, and
there are twice as many of them; no position scheme, since the recurrence itself knows order; the map to logits is the
embedding. Decoding keeps a state of one size, however long the text. Mamba-2 exchanges the mixer.
"""

from __future__ import annotations

from typing_extensions import Unpack

from ..base.embedding import EmbeddingConfig
from ..base.position import NoPositionConfig
from ..base.sockets import Depth, MixerConfig, Probability, Size
from ..base.stack import BlockConfig, StackConfig
from ..base.wiring import PreNormConfig
from ..enhancements.normalization.rms_norm import RMSNormConfig
from ..enhancements.ssm.initialization import MambaInitializationConfig
from ..enhancements.ssm.mamba import MambaConfig, States
from ..enhancements.ssm.mamba2 import Mamba2Config
from ..enhancements.switches import Switches, apply_switches
from .decoder import DecoderOnly, DecoderOnlyConfig


def mamba(
    vocab_size: int = 50280,
    d_model: Size = 768,
    n_layers: Depth = 24,
    d_inner: Size | None = None,
    d_state: States = 16,
    dt_rank: Size | None = None,
    dropout: Probability = 0.0,
    tie_embeddings: bool = True,
) -> DecoderOnlyConfig:
    """Mamba as a config; the defaults are the published model of 130 million parameters.

    d_inner: null is 2·d_model. dt_rank: null is ⌈d_model/16⌉. dropout: on each branch; the paper has none.
    """
    mixer = MambaConfig(d_inner, d_state, dt_rank)
    return _of(mixer, vocab_size, d_model, n_layers, dropout, tie_embeddings)


def mamba2(
    vocab_size: int = 50288,
    d_model: Size = 768,
    n_layers: Depth = 24,
    d_inner: Size | None = None,
    d_state: States = 128,
    d_head: Size = 64,
    n_groups: Size = 1,
    dropout: Probability = 0.0,
    tie_embeddings: bool = True,
) -> DecoderOnlyConfig:
    """Mamba-2 as a config; the defaults are the published model of 130 million parameters.

    d_inner: null is 2·d_model. n_groups: of heads that share B and C.
    """
    mixer = Mamba2Config(d_inner, d_state, d_head, n_groups)
    return _of(mixer, vocab_size, d_model, n_layers, dropout, tie_embeddings)


def _of(
    mixer: MixerConfig, vocab_size: int, d_model: int, n_layers: int, dropout: float, tie_embeddings: bool
) -> DecoderOnlyConfig:
    """A language model of blocks that are one mixer each."""
    norm = RMSNormConfig(1e-5)
    block = BlockConfig(mixer, None, wiring=PreNormConfig(dropout), norm=norm)
    stack = StackConfig((block,) * n_layers, NoPositionConfig(), norm, dropout)
    return DecoderOnlyConfig(
        vocab_size,
        d_model,
        stack,
        EmbeddingConfig(scaled=False),
        tie_embeddings=tie_embeddings,
        initialization=MambaInitializationConfig(),
    )


class Mamba(DecoderOnly):
    """Mamba, with any of the switches; `mamba` gives the meaning of each hyper-parameter."""

    def __init__(
        self,
        vocab_size: int = 50280,
        d_model: int = 768,
        n_layers: int = 24,
        d_inner: int | None = None,
        d_state: int = 16,
        dt_rank: int | None = None,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        **switches: Unpack[Switches],
    ) -> None:
        config = mamba(vocab_size, d_model, n_layers, d_inner, d_state, dt_rank, dropout, tie_embeddings)
        super().__init__(*apply_switches(config, switches))
