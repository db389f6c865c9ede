"""The 2017 Transformer with switches: `base.transformer` is the model, the switches are what came after it."""

from __future__ import annotations

from typing_extensions import Unpack

from ..base.transformer import EncoderDecoder, transformer
from ..enhancements.switches import Switches, apply_switches


class Transformer(EncoderDecoder):
    """The 2017 Transformer, with any of the switches; `base.transformer` gives the meaning of the rest.

    With no switch on it is `base.Transformer`, exactly as published.
    """

    def __init__(
        self,
        vocab_size: int = 10000,
        d_model: int = 512,
        n_heads: int = 8,
        n_layers: int = 6,
        d_ff: int | None = None,
        dropout: float = 0.1,
        max_seq_len: int = 1024,
        **switches: Unpack[Switches],
    ) -> None:
        config = transformer(vocab_size, d_model, n_heads, n_layers, d_ff, dropout, max_seq_len)
        super().__init__(*apply_switches(config, switches))
