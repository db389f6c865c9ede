"""What all linear attentions share as parts of a model: flags, precision, positions and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from transformer.base.transformer import EncoderDecoder, transformer
from transformer.enhancements import alibi, enhance, t5_bias
from transformer.enhancements.switches import apply_switches
from transformer.models import BERT, GPT, DecoderOnly, gpt

FLAGS = {
    "use_linear_attention": "linear_attention",
    "use_performer": "performer",
    "use_retention": "retention",
    "use_gated_linear_attention": "gated_linear_attention",
    "use_delta_net": "delta_net",
    "use_gated_delta_net": "gated_delta_net",
}
EVERYWHERE = ("use_linear_attention", "use_performer")
each_flag = pytest.mark.parametrize("flag", FLAGS)
SIZES: dict[str, Any] = {"vocab_size": 20, "d_model": 24, "n_heads": 2, "n_layers": 2, "max_seq_len": 200}


def made(flag: str, **others: Any) -> DecoderOnly:
    return GPT(**SIZES, **{flag: True}, **others).eval()


@each_flag
def test_a_flag_replaces_self_attention_and_encoders_where_it_can(flag: str) -> None:
    kinds = {block.mixer.kind for block in made(flag).config.stack.blocks}  # type: ignore[attr-defined]
    assert kinds == {FLAGS[flag]}
    config, _ = apply_switches(transformer(20, 24, 2, 2), {flag: True})
    in_encoder = FLAGS[flag] if flag in EVERYWHERE else "multi_head_attention"
    for block in (*config.encoder.blocks, *config.decoder.blocks):
        cross = block.cross_attention  # type: ignore[attr-defined]
        assert block.mixer.kind == (in_encoder if cross is None else FLAGS[flag])  # type: ignore[attr-defined]
        assert cross is None or cross.kind == "cross_attention"
    tokens = torch.randint(20, (2, 7))
    assert EncoderDecoder(config)(tokens, tokens).isfinite().all()


@each_flag
def test_an_encoder_alone_takes_two_of_them_and_refuses_the_rest(flag: str) -> None:
    if flag not in EVERYWHERE:
        with pytest.raises(
            ValueError, match="from left to right, and an encoder reads both ways; choose linear_att"
        ):
            BERT(**SIZES, **{flag: True})
        return
    model, tokens = BERT(**SIZES, **{flag: True}).eval(), torch.randint(20, (2, 7))
    real = torch.arange(7) < torch.tensor([[7], [4]])
    assert (model(tokens, attention_mask=real)[1, :4] - model(tokens[1:, :4])[0]).abs().max() <= 1e-4


@each_flag
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16 weights", "autocast"])
def test_coarse_precision_is_near_and_steps_agree(flag: str, dtype: torch.dtype) -> None:
    """Under autocast and with bfloat16 weights: logits near those of float32, in one call and in steps, padded."""
    model, tokens = made(flag, use_rope=True), torch.randint(20, (2, 90))
    real = torch.arange(90) < torch.tensor([[90], [70]])
    exact = model(tokens, real)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        coarse, state = model.to(dtype), model.initial_state()
        whole = coarse(tokens, real)
        pieces = zip(tokens.split([80, 1, 9], 1), real.split([80, 1, 9], 1), strict=True)
        steps = torch.cat([coarse.decode(piece, state, here) for piece, here in pieces], dim=1)
    for found in (whole, steps):
        assert (found - exact)[real].abs().max() <= 0.06 * exact.abs().max()


@each_flag
def test_rotation_is_used_or_left_alone_and_a_bias_is_refused(flag: str) -> None:
    """Linear attention, Performer and retention turn by the stack's scheme; the gated and delta rules do without."""
    tokens = torch.randint(20, (1, 40))
    model = made(flag, use_rope=True)
    turned = model(tokens)
    model.stack.position.base = 50.0  # type: ignore[assignment]
    assert torch.equal(model(tokens), turned) == (
        flag not in ("use_linear_attention", "use_performer", "use_retention")
    )
    for scheme in (alibi(), t5_bias()):
        config = enhance(gpt(**SIZES), scheme)
        config, _ = apply_switches(config, {flag: True})
        with pytest.raises(
            ValueError, match="has no scores to add a bias to, so .* would have no effect; use rota"
        ):
            DecoderOnly(config)(tokens)


@each_flag
def test_every_length_up_to_chunks_and_beyond(flag: str) -> None:
    """One token, less than a chunk, a chunk to the token, and one more: prefixes of one another."""
    model, tokens = made(flag).double(), torch.randint(20, (1, 130))
    whole = model(tokens)
    for length in (1, 2, 3, 63, 64, 65, 127, 128, 129):
        assert (model(tokens[:, :length]) - whole[:, :length]).abs().max() <= 1e-12
