"""Qwen 2 and 2.5, dense: biases on q, k and v, none on the output."""

from __future__ import annotations

from converters.families.family import Family
from converters.families.llama import ATTENTION, BIASES, REST, SILU

QWEN2 = Family(
    architecture="qwen2",
    hf_architectures=("Qwen2ForCausalLM",),
    model_type="qwen2",
    tokenizer="bpe",
    reads=("sliding_window",),
    only={**SILU, "attention_bias": (False, True)},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768},
    layers=(("input_layernorm.weight", "attn_norm.weight", "D"), *ATTENTION, *BIASES, *REST),
)
