"""The whole model against `torch.nn.Transformer` with copied weights: logits and the gradient of every parameter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.references import sinusoids
from transformer.base import scaled_dot_product_attention
from transformer.base.attention import CrossAttentionConfig, MultiHeadAttentionConfig
from transformer.base.sockets import Execution
from transformer.base.transformer import EncoderDecoder, transformer
from transformer.enhancements import enhance, pre_norm, replace_parts, sdpa_attention

VOCAB, WIDTH, HEADS, LAYERS, INNER = 37, 48, 12, 2, 96
SOURCE_LENGTHS, TARGET_LENGTH = (70, 41, 3), 66
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Reference(nn.Module):
    """PyTorch's encoder and decoder between an embedding, sinusoids and a head of our own."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
        encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, **options)
        decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, INNER, **options)
        # nn.Transformer always ends each stack in one more norm; the paper's post-norm model has none there.
        norms = [nn.LayerNorm(WIDTH) if norm_first else None for _ in range(2)]
        self.encoder = nn.TransformerEncoder(encoder, LAYERS, norms[0], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, LAYERS, norms[1])
        self.weight = nn.Parameter(torch.zeros(VOCAB, WIDTH))

    def forward(self, source: Tensor, target: Tensor, real: Tensor) -> Tensor:
        hidden = [self.embed(source), self.embed(target)]
        memory = self.encoder(hidden[0], src_key_padding_mask=~real)
        later = torch.ones(TARGET_LENGTH, TARGET_LENGTH).triu(1).bool()
        out = self.decoder(hidden[1], memory, tgt_mask=later, memory_key_padding_mask=~real)
        return out @ self.weight.T

    def embed(self, tokens: Tensor) -> Tensor:
        positions = torch.from_numpy(sinusoids(tokens.shape[1], WIDTH)).to(self.weight.dtype)
        return self.weight[tokens] * math.sqrt(WIDTH) + positions


def renamed(model: EncoderDecoder, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors by name (weights or gradients) under PyTorch's names."""
    result = {"weight": tensors["embedding.weight"]}
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        attentions = {"mixer": "self_attn"} | (
            {"cross_attention": "multihead_attn"} if side == "decoder" else {}
        )
        order = [*attentions, "feed_forward"]
        for i in range(LAYERS):
            ours, theirs = f"{side}.blocks.{i}.", f"{side}.layers.{i}."
            for kind in ("weight", "bias"):
                for name, other in attentions.items():
                    branch = f"{ours}{name}.branch."
                    stacked = [tensors[f"{branch}{p}.{kind}"] for p in PROJECTIONS]
                    result[f"{theirs}{other}.in_proj_{kind}"] = torch.cat(stacked)
                    result[f"{theirs}{other}.out_proj.{kind}"] = tensors[f"{branch}out_proj.{kind}"]
                inner = f"{ours}feed_forward.branch."
                result[f"{theirs}linear1.{kind}"] = tensors[f"{inner}up_proj.{kind}"]
                result[f"{theirs}linear2.{kind}"] = tensors[f"{inner}down_proj.{kind}"]
                for n, name in enumerate(order):
                    result[f"{theirs}norm{n + 1}.{kind}"] = tensors[f"{ours}{name}.norm.{kind}"]
        if isinstance(stack.norm, nn.Module) and f"{side}.norm.weight" in tensors:
            result |= {f"{side}.norm.{kind}": tensors[f"{side}.norm.{kind}"] for kind in ("weight", "bias")}
    return result


def make_models(
    norm_first: bool, dtype: torch.dtype, execution: Execution
) -> tuple[EncoderDecoder, Reference]:
    config = transformer(VOCAB, WIDTH, HEADS, LAYERS, INNER, dropout=0.0, max_seq_len=80)
    config = replace_parts(
        config, MultiHeadAttentionConfig, lambda c: MultiHeadAttentionConfig(c.n_heads, bias=True)
    )
    config = replace_parts(config, CrossAttentionConfig, lambda c: CrossAttentionConfig(c.n_heads, bias=True))
    config = enhance(config, *([pre_norm()] if norm_first else []))
    model = EncoderDecoder(config, execution).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # no gain of 1 or bias of 0 that could hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    reference = Reference(norm_first).to(dtype)
    reference.load_state_dict(renamed(model, dict(model.named_parameters())))
    return model, reference


@pytest.mark.parametrize("kernel", [scaled_dot_product_attention, sdpa_attention])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_logits_and_gradients_equal_torch(
    norm_first: bool, dtype: torch.dtype, tolerance: float, kernel: Any
) -> None:
    model, reference = make_models(norm_first, dtype, Execution(kernel))
    batch, width = len(SOURCE_LENGTHS), max(SOURCE_LENGTHS)
    source, target = torch.randint(VOCAB, (batch, width)), torch.randint(VOCAB, (batch, TARGET_LENGTH))
    labels = torch.randint(VOCAB, (batch, TARGET_LENGTH))
    real = torch.arange(width) < torch.tensor(SOURCE_LENGTHS)[:, None]

    ours, theirs = model(source, target, real), reference(source, target, real)
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    for logits in (ours, theirs):
        F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    expected = dict(reference.named_parameters())
    copied = renamed(model, gradients)
    assert set(copied) == set(expected)
    for name, gradient in copied.items():
        torch.testing.assert_close(gradient, expected[name].grad, rtol=0, atol=tolerance, msg=name)
