"""What came after 2017: one paper, one file, one part that plugs into any model by configuration."""

from .architecture.layer_drop import layer_drop
from .architecture.mixture_of_depths import mixture_of_depths
from .architecture.moe.dispatch import DISPATCHES, grouped_dispatch, loop_dispatch
from .architecture.moe.mixture import mixture_of_experts
from .architecture.parallel import parallel_blocks
from .architecture.residual_multiplier import residual_multiplier
from .architecture.stochastic_depth import stochastic_depth
from .attention.chunked import chunked_attention
from .attention.delta_net import delta_net
from .attention.differential import differential
from .attention.flash import bytes_moved, flash_attention
from .attention.flex import flex_attention
from .attention.gated_delta_net import gated_delta_net
from .attention.gated_linear import gated_linear_attention
from .attention.grouped_query import grouped_query, multi_query, pool_heads
from .attention.kernels import KERNELS, best_attention
from .attention.linear import linear_attention
from .attention.multi_head_latent import multi_head_latent
from .attention.naive import attention_weights, naive_attention
from .attention.performer import performer
from .attention.qk_norm import qk_norm
from .attention.retention import retention
from .attention.sdpa import sdpa_attention
from .attention.sinks import attention_sinks
from .attention.sliding_window import sliding_window
from .attention.soft_cap import soft_cap
from .attention.triton_flash import triton_attention
from .catalog import CATALOG
from .compose import enhance, replace_parts
from .embedding import untied_embeddings
from .feed_forward.gelu import gelu
from .feed_forward.glu import bilinear, geglu, glu, llama_width, reglu, swiglu
from .feed_forward.mish import mish
from .feed_forward.relu_squared import relu_squared
from .feed_forward.silu import silu
from .no_bias import no_bias
from .normalization.bias_free_layer_norm import bias_free_layer_norm
from .normalization.deep_norm import deep_norm
from .normalization.dynamic_tanh import dynamic_tanh
from .normalization.group_norm import group_norm
from .normalization.layer_scale import layer_scale
from .normalization.non_parametric_layer_norm import non_parametric_layer_norm
from .normalization.non_parametric_rms_norm import non_parametric_rms_norm
from .normalization.post_norm import post_norm
from .normalization.post_sublayer_norm import post_sublayer_norm
from .normalization.pre_norm import pre_norm
from .normalization.resi_dual import resi_dual
from .normalization.rms_norm import rms_norm
from .normalization.sandwich_norm import sandwich_norm
from .normalization.scale_norm import scale_norm
from .normalization.unit_offset_rms_norm import unit_offset_rms_norm
from .position.alibi import alibi
from .position.rope import rope
from .position.shaw import shaw
from .position.t5_bias import t5_bias
from .position.transformer_xl import transformer_xl
from .position.xpos import xpos
from .ssm.forms import SCANS, best_scan
from .ssm.mamba import selective_state_space
from .ssm.mamba2 import state_space_duality
from .ssm.rg_lru import real_gated_recurrence
from .ssm.s4d import s4d
from .switches import SWITCHES, apply_switches

__all__ = [
    "CATALOG",
    "DISPATCHES",
    "KERNELS",
    "SCANS",
    "SWITCHES",
    "alibi",
    "apply_switches",
    "attention_sinks",
    "attention_weights",
    "best_attention",
    "best_scan",
    "bias_free_layer_norm",
    "bilinear",
    "bytes_moved",
    "chunked_attention",
    "deep_norm",
    "delta_net",
    "differential",
    "dynamic_tanh",
    "enhance",
    "flash_attention",
    "flex_attention",
    "gated_delta_net",
    "gated_linear_attention",
    "geglu",
    "gelu",
    "glu",
    "group_norm",
    "grouped_dispatch",
    "grouped_query",
    "layer_drop",
    "layer_scale",
    "linear_attention",
    "llama_width",
    "loop_dispatch",
    "mish",
    "mixture_of_depths",
    "mixture_of_experts",
    "multi_head_latent",
    "multi_query",
    "naive_attention",
    "no_bias",
    "non_parametric_layer_norm",
    "non_parametric_rms_norm",
    "parallel_blocks",
    "performer",
    "pool_heads",
    "post_norm",
    "post_sublayer_norm",
    "pre_norm",
    "qk_norm",
    "real_gated_recurrence",
    "reglu",
    "relu_squared",
    "replace_parts",
    "resi_dual",
    "residual_multiplier",
    "retention",
    "rms_norm",
    "rope",
    "s4d",
    "sandwich_norm",
    "scale_norm",
    "sdpa_attention",
    "selective_state_space",
    "shaw",
    "silu",
    "sliding_window",
    "soft_cap",
    "state_space_duality",
    "stochastic_depth",
    "swiglu",
    "t5_bias",
    "transformer_xl",
    "triton_attention",
    "unit_offset_rms_norm",
    "untied_embeddings",
    "xpos",
]
