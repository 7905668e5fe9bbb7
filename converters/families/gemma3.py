"""Gemma 3: text models, and the text part of the multimodal ones.

A checkpoint stores norm weights minus 1 (the layer computes 1 + w). Each block has four norms, q
and k are normalized per head, and the head is tied to the embedding. Five of six layers see only a
sliding window and use another rotary base.
"""

from __future__ import annotations

from typing import Any

from converters.config_fields import Config, field_error, real
from converters.families.family import Family, Getter, Putter, short

EVERY = 6
"""llama.cpp sees every sixth layer whole, the others through the window."""
LAYERS_27B = 62
"""At this number of layers llama.cpp scales the attention by hidden_size / num_attention_heads, at
every other by head_dim (src/models/gemma3.cpp)."""


class _Gemma3(Family):
    def check_own(self, config: Config) -> None:
        heads = self.number(config, "num_attention_heads")
        scalar = self.number(config, "head_dim")
        if self.number(config, "num_hidden_layers") == LAYERS_27B:
            scalar = self.number(config, "hidden_size") // heads
        if real({**self.defaults, **config}, "query_pre_attn_scalar") != scalar:
            shown = {"query_pre_attn_scalar": self.setting(config, "query_pre_attn_scalar")}
            why = f"llama.cpp computes {scalar} for a model of this shape"
            raise field_error("query_pre_attn_scalar", shown, why)
        if real(config, "final_logit_softcapping") == 0:
            raise field_error("final_logit_softcapping", config, "no logits can be told apart then")
        self._has_window(config)

    def _has_window(self, config: Config) -> bool:
        """Whether five of six layers see a window, or none does. Raises ConversionError."""
        n_layer = self.number(config, "num_hidden_layers")
        usual = layer_types(n_layer, EVERY)
        given = config.get("layer_types")
        name = "layer_types"
        if not given:
            name = "sliding_window_pattern"
            pattern = config.get(name, EVERY)
            given = usual if pattern in (None, EVERY) else []
            if pattern == 1:
                given = layer_types(n_layer, 1)
        if given == usual:
            return True
        if given == layer_types(n_layer, 1):
            return False
        raise field_error(name, config, "llama.cpp computes five sliding layers, then a full one")

    def put_own(self, put: Putter, config: Config) -> None:
        if self._has_window(config):
            put("u32", "attention.sliding_window", self.number(config, "sliding_window"))
        put("f32", "final_logit_softcapping", config.get("final_logit_softcapping") or None)

    def own_config(self, get: Getter) -> dict[str, Any]:
        every = EVERY if get("attention.sliding_window") else 1
        heads = get("attention.head_count")
        is_27b = get("block_count") == LAYERS_27B
        scalar = get("embedding_length") // heads if is_27b else get("attention.key_length")
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": scalar,
            "sliding_window": get("attention.sliding_window", 4096),
            "sliding_window_pattern": every,
            "layer_types": layer_types(get("block_count"), every),
            "rope_local_base_freq": short(get("rope.freq_base_swa", 10000.0)),
            "final_logit_softcapping": get("final_logit_softcapping"),
            "attn_logit_softcapping": None,
            "attention_bias": False,
        }


def layer_types(n_layer: int, every: int) -> list[str]:
    """Each layer's kind of attention, every `every`-th being full.

    >>> layer_types(3, 2)
    ['sliding_attention', 'full_attention', 'sliding_attention']
    """
    kinds = ("sliding_attention", "full_attention")
    return [kinds[(layer + 1) % every == 0] for layer in range(n_layer)]


GEMMA3 = _Gemma3(
    architecture="gemma3",
    hf_architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_type="gemma3_text",
    tokenizer="spm",
    norm_shift=1.0,
    reads=(
        *("sliding_window", "sliding_window_pattern", "query_pre_attn_scalar"),
        *("final_logit_softcapping", "rope_local_base_freq"),
    ),
    only={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "hidden_act": ("gelu_pytorch_tanh",),
        "attn_logit_softcapping": (),
    },
    has_local_rope=True,
    defaults={
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
        **{"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "rope_theta": 1_000_000.0},
        **{"sliding_window": 4096, "query_pre_attn_scalar": 256, "tie_word_embeddings": True},
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
