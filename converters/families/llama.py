"""Llama: SmolLM2, TinyLlama, Llama 2 and 3, dense.

llama.cpp rotates neighbouring elements where the checkpoint rotates the two halves of a head, so
the rows of q and k are reordered. Llama 3's long-context rotary factors become a tensor of their
own (`_computed` in hf_to_gguf.py).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from converters.families.family import Config, Family, Putter, rope_parameters

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
    settings, _ = rope_parameters(config)
    if str(settings.get("rope_type")).lower() != "llama3":
        return None
    base, factor = settings.get("rope_theta", 10000.0), settings.get("factor", 8.0)
    low, high = settings.get("low_freq_factor", 1.0), settings.get("high_freq_factor", 4.0)
    context = settings.get("original_max_position_embeddings", 8192)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    wavelengths = 2 * math.pi / (np.float32(1.0) / np.float32(base) ** exponents)
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < context / high, 1.0, between)
    return np.where(wavelengths > context / low, factor, factors).astype(np.float32)
