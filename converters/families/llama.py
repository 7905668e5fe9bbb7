"""Llama: SmolLM2, TinyLlama, Llama 2 and 3, dense.

llama.cpp rotates neighbouring elements where the checkpoint rotates the two halves of a head, so
the rows of q and k are reordered. Llama 3's long-context rotary factors become a tensor of their
own (`_computed` in hf_to_gguf.py).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from converters.config_fields import Config
from converters.families.family import Family, Putter

ATTENTION = (
    ("self_attn.q_proj.weight", "attn_q.weight", "QD"),
    ("self_attn.k_proj.weight", "attn_k.weight", "KD"),
    ("self_attn.v_proj.weight", "attn_v.weight", "KD"),
)
BIASES = (
    ("self_attn.q_proj.bias", "attn_q.bias", "Q"),
    ("self_attn.k_proj.bias", "attn_k.bias", "K"),
    ("self_attn.v_proj.bias", "attn_v.bias", "K"),
)
REST = (
    ("self_attn.o_proj.weight", "attn_output.weight", "DQ"),
    ("post_attention_layernorm.weight", "ffn_norm.weight", "D"),
    ("mlp.gate_proj.weight", "ffn_gate.weight", "FD"),
    ("mlp.up_proj.weight", "ffn_up.weight", "FD"),
    ("mlp.down_proj.weight", "ffn_down.weight", "DF"),
)


SILU = {"hidden_act": ("silu", "swish")}
"""The activation that llama.cpp computes for Llama and Qwen; transformers has two names for it."""


class _Llama(Family):
    def put_own(self, put: Putter, config: Config) -> None:
        put("u32", "vocab_size", self.number(config, "vocab_size"))
        head = self.number(config, "hidden_size") // self.number(config, "num_attention_heads")
        put("u32", "rope.dimension_count", self.number(config, "head_dim", head))


LLAMA = _Llama(
    architecture="llama",
    hf_architectures=("LlamaForCausalLM",),
    model_type="llama",
    tokenizer="either",
    is_permuted=True,
    only={**SILU, "attention_bias": (False, True)},
    rope_kinds=("default", "linear", "yarn", "llama3"),
    has_layer_types=False,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    layers=(
        ("input_layernorm.weight", "attn_norm.weight", "D"),
        *ATTENTION,
        *((source, target, letters + "?") for source, target, letters in BIASES),
        ("self_attn.o_proj.bias", "attn_output.bias", "D?"),
        *REST,
    ),
)


def rope_factors(config: Config, head_dim: int) -> NDArray[np.float32] | None:
    """Llama 3's divisors of the rotary frequencies, float32 (head_dim / 2); None for other models.

    Short wavelengths keep their frequency, long ones are slowed by `factor`, those between are
    interpolated (`rope_type: llama3`, transformers' modeling_rope_utils).
    """
    rope = LLAMA.rope(config)
    if rope.kind != "llama3" or rope.factor is None or rope.original_context is None:
        return None
    base, factor, context = rope.theta or 10000.0, rope.factor, rope.original_context
    low, high = rope.low_freq_factor, rope.high_freq_factor
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    wavelengths = 2 * math.pi / (np.float32(1.0) / np.float32(base) ** exponents)
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < context / high, 1.0, between)
    return np.where(wavelengths > context / low, factor, factors).astype(np.float32)
