"""Gemma 3: text models, and the text part of the multimodal ones.

A checkpoint stores norm weights minus 1 (the layer computes 1 + w). Each block has four norms, q
and k are normalized per head, and the head is tied to the embedding. Five of six layers see only a
sliding window and use another rotary base.
"""

from __future__ import annotations

from typing import Any

from converters.families.family import Config, Family, Getter, Putter, short


class _Gemma3(Family):
    def put_own(self, put: Putter, config: Config) -> None:
        if config.get("sliding_window_pattern") != 1:
            put("u32", "attention.sliding_window", self.number(config, "sliding_window"))
        put("f32", "final_logit_softcapping", config.get("final_logit_softcapping") or None)

    def own_config(self, get: Getter) -> dict[str, Any]:
        n_layer, every = get("block_count"), 6
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": get("attention.key_length"),
            "sliding_window": get("attention.sliding_window", 4096),
            "sliding_window_pattern": every,
            "layer_types": [
                "sliding_attention" if layer % every < every - 1 else "full_attention"
                for layer in range(n_layer)
            ],
            "rope_local_base_freq": short(get("rope.freq_base_swa", 10000.0)),
            "final_logit_softcapping": get("final_logit_softcapping"),
            "attn_logit_softcapping": None,
            "attention_bias": False,
        }


GEMMA3 = _Gemma3(
    architecture="gemma3",
    hf_architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_type="gemma3_text",
    tokenizer="spm",
    norm_shift=1.0,
    is_always_tied=True,
    defaults={
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
        **{"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "rope_theta": 1_000_000.0},
        **{"sliding_window": 4096},
    },
    layers=(
        ("input_layernorm.weight", "attn_norm.weight", "D"),
        ("self_attn.q_proj.weight", "attn_q.weight", "QD"),
        ("self_attn.k_proj.weight", "attn_k.weight", "KD"),
        ("self_attn.v_proj.weight", "attn_v.weight", "KD"),
        ("self_attn.q_norm.weight", "attn_q_norm.weight", "H"),
        ("self_attn.k_norm.weight", "attn_k_norm.weight", "H"),
        ("self_attn.o_proj.weight", "attn_output.weight", "DQ"),
        ("post_attention_layernorm.weight", "post_attention_norm.weight", "D"),
        ("pre_feedforward_layernorm.weight", "ffn_norm.weight", "D"),
        ("mlp.gate_proj.weight", "ffn_gate.weight", "FD"),
        ("mlp.up_proj.weight", "ffn_up.weight", "FD"),
        ("mlp.down_proj.weight", "ffn_down.weight", "DF"),
        ("post_feedforward_layernorm.weight", "post_ffw_norm.weight", "D"),
    ),
)
