"""Qwen 3, dense: no biases; q and k are normalized per head before the rotary embedding."""

from __future__ import annotations

from converters.families.family import Family
from converters.families.llama import ATTENTION, REST, SILU

QWEN3 = Family(
    architecture="qwen3",
    hf_architectures=("Qwen3ForCausalLM",),
    model_type="qwen3",
    tokenizer="bpe",
    reads=("sliding_window",),
    only=SILU,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128},
    layers=(
        ("input_layernorm.weight", "attn_norm.weight", "D"),
        *ATTENTION,
        ("self_attn.q_norm.weight", "attn_q_norm.weight", "H"),
        ("self_attn.k_norm.weight", "attn_k_norm.weight", "H"),
        *REST,
    ),
)
