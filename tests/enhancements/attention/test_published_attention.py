"""Our attention against other people's: the attention layers of `transformers`, with the same random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from transformer.base.sockets import Context, Execution, Kernel, Layer, Layout, Mask
from transformer.enhancements import naive_attention, sdpa_attention
from transformer.enhancements.attention.differential import DifferentialAttentionConfig
from transformer.enhancements.attention.grouped_query import GroupedQueryAttentionConfig
from transformer.enhancements.attention.multi_head_latent import MultiHeadLatentAttentionConfig
from transformer.enhancements.attention.sliding_window import SlidingWindowAttentionConfig
from transformer.enhancements.normalization.rms_norm import RMSNormConfig
from transformer.enhancements.position.rope import RotaryPosition

WIDTH, LENGTH = 96, 80
COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "vocab_size": 10,
    "intermediate_size": 8,
    "attention_dropout": 0.0,
    "attn_implementation": "eager",
    "max_position_embeddings": 128,
}
NAMES = {"q": "q", "k": "k", "v": "v", "out": "o"}
each_kernel = pytest.mark.parametrize("kernel", [naive_attention, sdpa_attention])


def shaken(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5 + 0.05)
    return module.eval()


def angles(width: int) -> tuple[Tensor, Tensor]:
    """The cosines and sines that `transformers` hands to its attention: each twice, for the two halves."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    turned = torch.arange(LENGTH).double()[:, None] * frequencies
    both = torch.cat([turned, turned], dim=-1)[None]
    return both.cos().float(), both.sin().float()


def hidden_scores(window: int) -> Tensor:
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    return torch.zeros(LENGTH, LENGTH).masked_fill((distance < 0) | (distance >= window), -torch.inf)[
        None, None
    ]


def compare(theirs: nn.Module, ours: Layer, kernel: Kernel, window: int, rotary: int) -> None:
    x = torch.randn(2, LENGTH, WIDTH)
    expected = theirs(x, position_embeddings=angles(rotary), attention_mask=hidden_scores(window))[0]
    layout = Layout.of(torch.zeros(2, LENGTH).long())
    got = ours(x, Context(layout, Mask(causal=True), Execution(kernel), RotaryPosition()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def take(theirs: Any, ours: Any, **renamed: str) -> None:
    found = {
        f"{a}_proj.{n}": p
        for a, b in NAMES.items()
        for n, p in getattr(theirs, f"{b}_proj").named_parameters()
    }
    found |= {name: dict(theirs.named_parameters())[other] for name, other in renamed.items()}
    ours.load_state_dict({name.replace("__", "."): p for name, p in found.items()})
    ours.eval()


@each_kernel
def test_gemma2_caps_scales_and_slides(kernel: Kernel) -> None:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2Config

    config = Gemma2Config(**COMMON, query_pre_attn_scalar=5, attn_logit_softcapping=1.5, sliding_window=20)
    theirs = shaken(Gemma2Attention(config, 0))
    ours = SlidingWindowAttentionConfig(12, 4, d_head=8, soft_cap=1.5, scale=5**-0.5, window=20).build(WIDTH)
    take(theirs, ours)
    compare(theirs, ours, kernel, 20, 8)


@each_kernel
def test_qwen3_normalizes_queries_and_keys(kernel: Kernel) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3Config

    theirs = shaken(Qwen3Attention(Qwen3Config(**COMMON, rms_norm_eps=1e-6), 0))
    ours = GroupedQueryAttentionConfig(12, 4, d_head=8, qk_norm=RMSNormConfig(1e-6)).build(WIDTH)
    take(theirs, ours, q_norm__weight="q_norm.weight", k_norm__weight="k_norm.weight")
    compare(theirs, ours, kernel, 999, 8)


@each_kernel
def test_gpt_oss_has_sinks(kernel: Kernel) -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssConfig

    config = GptOssConfig(**COMMON, layer_types=["sliding_attention"] * 2, sliding_window=16)
    theirs = shaken(GptOssAttention(config, 0))
    ours = SlidingWindowAttentionConfig(12, 4, d_head=8, bias=True, sinks=True, window=16).build(WIDTH)
    take(theirs, ours, sinks="sinks")
    x = torch.randn(2, LENGTH, WIDTH)
    half = tuple(part[..., :4] for part in angles(8))  # this one keeps one half and repeats it itself
    expected = theirs(x, position_embeddings=half, attention_mask=hidden_scores(16))[0]
    layout = Layout.of(torch.zeros(2, LENGTH).long())
    got = ours(x, Context(layout, Mask(causal=True), Execution(kernel), RotaryPosition()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


@each_kernel
@pytest.mark.parametrize("q_rank", [None, 24])
def test_deepseek_goes_through_latents(kernel: Kernel, q_rank: int | None) -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3Config

    settings = {**COMMON, "num_key_value_heads": 12}
    settings.pop("head_dim")
    config = DeepseekV3Config(
        **settings, q_lora_rank=q_rank, kv_lora_rank=20, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=7,
        rope_interleave=False,
    )  # fmt: skip
    theirs: Any = shaken(DeepseekV3Attention(config, 0))
    ours = MultiHeadLatentAttentionConfig(12, 20, q_rank, d_content=10, d_rotary=6, d_value=7).build(WIDTH)
    both = rearrange(theirs.kv_b_proj.weight, "(h e) r -> h e r", h=12)
    down = theirs.kv_a_proj_with_mqa.weight
    weights = {
        "kv_down_proj.weight": down[:20],
        "k_rotary_proj.weight": down[20:],
        "kv_norm.weight": theirs.kv_a_layernorm.weight,
        "k_up_proj.weight": both[:, :10].flatten(0, 1),
        "v_up_proj.weight": both[:, 10:].flatten(0, 1),
        "q_up_proj.weight": theirs.q_proj.weight if q_rank is None else theirs.q_b_proj.weight,
        "out_proj.weight": theirs.o_proj.weight,
    }
    if q_rank is not None:
        weights |= {
            "q_down_proj.weight": theirs.q_a_proj.weight,
            "q_norm.weight": theirs.q_a_layernorm.weight,
        }
    ours.load_state_dict(weights)
    compare(theirs, ours, kernel, 999, 6)


@each_kernel
def test_diffllama_subtracts_maps(kernel: Kernel) -> None:
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaConfig

    config = DiffLlamaConfig(**{**COMMON, "num_key_value_heads": 12}, rms_norm_eps=1e-5)
    theirs: Any = shaken(DiffLlamaAttention(config, 3))
    ours = DifferentialAttentionConfig(6, theirs.lambda_init).build(WIDTH)

    def paired(weight: Tensor) -> Tensor:
        """They keep all first maps before all second ones; ours stand beside each other."""
        return rearrange(weight, "(m h e) d -> (h m e) d", m=2, e=8)

    ours.load_state_dict(
        {
            "q_proj.weight": paired(theirs.q_proj.weight),
            "k_proj.weight": paired(theirs.k_proj.weight),
            "v_proj.weight": paired(theirs.v_proj.weight),
            "out_proj.weight": theirs.o_proj.weight,
            "lambda_q": torch.stack([theirs.lambda_q1, theirs.lambda_q2]),
            "lambda_k": torch.stack([theirs.lambda_k1, theirs.lambda_k2]),
            "norm.weight": torch.ones(16),
        }
    )
    compare(theirs, ours, kernel, 999, 8)
