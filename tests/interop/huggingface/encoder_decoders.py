"""Small published encoder-decoders with random weights, and how ours are compared with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM

from tests.interop.huggingface.measured import record, record_saved
from tests.interop.huggingface.published import VOCAB, shaken
from transformer import load
from transformer.generation import beam_search
from transformer.interop import to_huggingface
from transformer.interop.huggingface import FAMILIES

SOURCE, TARGET = 150, 140
PAD, EOS = 0, 1


def published(config: Any, folder: Path, dtype: torch.dtype, *, untied: bool = False) -> Any:
    """A sequence-to-sequence model of `transformers` with random weights, saved in the folder."""
    torch.manual_seed(3)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager")
    if untied:
        model.lm_head.weight = nn.Parameter(0.5 * torch.randn_like(model.lm_head.weight))
    model = shaken(model, dtype)
    if not untied:  # small, so that a tied model does not only repeat what it reads
        model.get_input_embeddings().weight.data.mul_(0.2)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    for module in model.modules():
        if type(module).__name__ == "MarianSinusoidalPositionalEmbedding":
            module.weight.data = halves(*module.weight.shape).to(dtype)  # a formula, not to be shaken
    model.save_pretrained(folder)
    return model


def halves(length: int, width: int) -> Tensor:
    """Marian's table of positions, entry by entry and in double precision: `transformers` has it in single."""
    table = torch.zeros(length, width, dtype=torch.float64)
    for position in range(length):
        for j in range(width):
            angle = position / 10000 ** (2 * (j % -(-width // 2)) / width)
            table[position, j] = math.sin(angle) if j < -(-width // 2) else math.cos(angle)
    return table


def batch(sides: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source and target tokens and masks: a whole row, one padded on the right, and one on the left if allowed."""
    dice = torch.Generator().manual_seed(1)
    source, target = (torch.randint(2, VOCAB, (3, n), generator=dice) for n in (SOURCE, TARGET))
    source_mask, target_mask = (torch.ones(3, n, dtype=torch.long) for n in (SOURCE, TARGET))
    source_mask[1, 91:], target_mask[1, 77:] = 0, 0
    if sides == "both":
        source_mask[2, :23] = 0
    return source * source_mask, source_mask, target * target_mask, target_mask


def compare(theirs: Any, ours: Any, tolerance: float, sides: str = "both") -> None:
    """Compare the logits of real target tokens, and the gradients by every weight."""
    source, source_mask, target, target_mask = batch(sides)
    expected = theirs(
        input_ids=source,
        attention_mask=source_mask,
        decoder_input_ids=target,
        decoder_attention_mask=target_mask,
    ).logits
    got = ours(source, target, source_mask)
    real = target_mask.bool()
    scale = max(1.0, expected[real].abs().max().item())
    assert record(theirs, "logit", expected[real], got[real]) <= tolerance * scale
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(expected.dtype)
    slope = slope * real[..., None] / TARGET
    (expected * slope).sum().backward()
    (got * slope).sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters(remove_duplicate=False)}
    compared = 0
    for rule in FAMILIES[theirs.config.model_type].rules(ours.config):
        for name, second in zip(
            rule.theirs, rule.write([gradients[path] for path in rule.ours]), strict=True
        ):
            first = dict(theirs.named_parameters()).get(name)
            if first is not None:
                worst = record(theirs, "gradient", first.grad, second)
                assert worst <= tolerance * max(1.0, first.grad.abs().max().item()), name
                compared += 1
    assert compared >= 25


@torch.no_grad()
def write_alike(theirs: Any, ours: Any, bos: int, **beams: Any) -> None:
    """Greedy and beam search give the same targets, token for token; rows of ours are searched together."""
    lengths, extra = torch.tensor([12, 5, 9]), 12
    source = torch.randint(2, VOCAB, (3, 12), generator=torch.Generator().manual_seed(4))
    mask = torch.arange(12) < lengths[:, None]
    free = beam_search(
        ours, source, mask, bos=bos, eos=VOCAB - 1, pad=PAD, beam_size=1, max_extra_tokens=extra
    )
    written = free[:, 3:].flatten().tolist()
    stop = next(token for token in written if token not in (PAD, VOCAB - 1))
    ended = 0
    for size in (1, 4):
        found = beam_search(
            ours, source, mask, bos=bos, eos=stop, pad=PAD, beam_size=size, length_penalty=1.0,
            max_extra_tokens=extra, normalization="power", stopping="worse", at_limit="cut",
        )  # fmt: skip
        for row, length in enumerate(lengths.tolist()):
            expected = theirs.generate(
                source[row : row + 1, :length], max_new_tokens=length + extra, num_beams=size, do_sample=False,
                eos_token_id=stop, pad_token_id=PAD, decoder_start_token_id=bos, length_penalty=1.0,
                forced_eos_token_id=None, **beams,
            )[0, 1:].tolist()  # fmt: skip
            got = found[row].tolist()
            end = got.index(stop) + 1 if stop in got else length + extra
            ended += stop in got
            assert got[:end] == expected[:end], (got, expected)
            assert set(got[end:]) <= {PAD} and len(expected) >= end
    assert ended >= 2


@torch.no_grad()
def cache_changes_nothing(ours: Any) -> None:
    """Decoding in two pieces, cut anywhere, and token by token, is decoding the whole."""
    source, source_mask, target, _ = batch("right")
    target = target[:, :24]
    whole, memory = ours(source, target, source_mask), ours.encode(source, source_mask)
    scale = whole.abs().max().item()
    cuts = [[n, target.shape[1] - n] for n in range(1, target.shape[1])]
    for sizes in [*cuts, [1] * target.shape[1]]:
        state = ours.initial_state(memory)
        parts = torch.cat([ours.decode(part, state) for part in target.split(sizes, dim=1)], dim=1)
        assert (parts - whole).abs().max().item() <= 1e-12 * scale, sizes


def round_trip(theirs: Any, ours: Any, folder: Path, model_type: str, sides: str = "both") -> None:
    """What we save, `transformers` loads without a missing or unexpected key, and computes the same."""
    to_huggingface(ours, folder, model_type=model_type)
    again, report = AutoModelForSeq2SeqLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype="auto"
    )
    assert not any(report.values()), report
    source, mask, target, _ = batch(sides)
    with torch.no_grad():
        inputs = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
        torch.testing.assert_close(
            again.eval()(**inputs).logits, theirs(**inputs).logits, rtol=1e-6, atol=1e-6
        )
    assert load(folder).config == ours.config
    record_saved(theirs)
