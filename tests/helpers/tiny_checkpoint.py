"""A real but tiny Hugging Face directory: random weights, byte-level BPE or SentencePiece.

It is made without the converters, so that its content is known independently: names and shapes are
written here as transformers saves them. Flows in: a directory and a family. Flows out: the
directory and its float32 arrays. The vocabularies are those of tiny_gguf.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors_writer import write_arrays
from tiny_gguf import BYTE_TOKENS, CONTROL_TOKENS, SPM_SPECIAL, spm_vocabulary, vocabulary

from converters.rows import stored_rows
from converters.safetensors_file import map_file, read_header

D, F, HEADS, KV_HEADS, HEAD, LAYERS = 64, 256, 4, 2, 16, 2
Arrays = dict[str, np.ndarray]

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 1e5},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6, "rope_theta": 1e6},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "rms_norm_eps": 1e-6,
        "head_dim": HEAD,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "rms_norm_eps": 1e-6,
        "head_dim": HEAD,
        "sliding_window": 32,
        "query_pre_attn_scalar": HEAD,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1e6,
    },
}


def write_checkpoint(
    directory: Path,
    family: str = "llama",
    *,
    is_tied: bool = False,
    seed: int = 0,
    n_layer: int = LAYERS,
) -> Arrays:
    """Write the directory and return its arrays by name."""
    directory.mkdir(parents=True)
    tokenizer = spm_tokenizer() if family == "gemma3" else bpe_tokenizer()
    size = len(tokenizer["model"]["vocab"])
    config = {
        "model_type": family,
        "vocab_size": size,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": n_layer,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "tie_word_embeddings": is_tied or family == "gemma3",
        **CONFIGS[family],
    }
    arrays = weights(family, size, config["tie_word_embeddings"], seed, n_layer)
    put_json(directory / "config.json", config)
    put_json(directory / "tokenizer.json", tokenizer)
    put_json(directory / "tokenizer_config.json", tokenizer_config(family))
    write_arrays(directory / "model.safetensors", arrays)
    return arrays


def arrays_of(directory: Path) -> Arrays:
    """The arrays of a directory, by name."""
    path = directory / "model.safetensors"
    mapped, found = map_file(path), {}
    for name, tensor in read_header(path).items():
        rows = stored_rows(tensor, mapped)
        array = np.empty((rows.n_rows, rows.n_columns), np.float32)
        rows.read(0, array)
        found[name] = array.reshape(tensor.shape)
    return found


def put_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False))


def weights(family: str, size: int, is_tied: bool, seed: int, n_layer: int) -> Arrays:
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / 8).astype(np.float32)

    found = {"model.embed_tokens.weight": matrix(size, D), "model.norm.weight": matrix(D) + 1}
    if not is_tied:
        found["lm_head.weight"] = matrix(size, D)
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    for layer in range(n_layer):
        block = {
            "input_layernorm.weight": matrix(D) + 1,
            "self_attn.q_proj.weight": matrix(q, D),
            "self_attn.k_proj.weight": matrix(kv, D),
            "self_attn.v_proj.weight": matrix(kv, D),
            "self_attn.o_proj.weight": matrix(D, q),
            "post_attention_layernorm.weight": matrix(D) + 1,
            "mlp.gate_proj.weight": matrix(F, D),
            "mlp.up_proj.weight": matrix(F, D),
            "mlp.down_proj.weight": matrix(D, F),
        }
        if family == "qwen2":
            block |= {f"self_attn.{x}_proj.bias": matrix(q if x == "q" else kv) for x in "qkv"}
        if family in ("qwen3", "gemma3"):
            block |= {f"self_attn.{x}_norm.weight": matrix(HEAD) + 1 for x in "qk"}
        if family == "gemma3":
            sides = ("pre", "post")
            block |= {f"{side}_feedforward_layernorm.weight": matrix(D) for side in sides}
        found |= {f"model.layers.{layer}.{name}": array for name, array in block.items()}
    return found


def tokenizer_config(family: str) -> dict[str, Any]:
    if family == "gemma3":
        return {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
                "unk_token": "<unk>", "add_bos_token": True}  # fmt: skip
    return {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": "{{ x }}"}


def bpe_tokenizer() -> dict[str, Any]:
    """SmolLM2's pre-tokenizer with tiny_gguf's tokens and merges."""
    tokens, merges = vocabulary()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, {**byte_level, "use_regex": True}]
    return {
        "added_tokens": [added(n, token, True) for n, token in enumerate(CONTROL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split() for merge in merges],
        },
    }


def spm_tokenizer() -> dict[str, Any]:
    """Like Gemma's tokenizer.json: no scores, bytes as pieces, runs of spaces as added tokens."""
    pieces = [text for text, _, _ in spm_vocabulary()]
    characters = sorted(p for p in pieces if len(p) == 1)
    longer = [p for p in pieces if len(p) > 1 and p not in (*SPM_SPECIAL, *BYTE_TOKENS)]
    runs = ["▁▁", "▁▁▁"]
    texts = [*SPM_SPECIAL, *runs, *BYTE_TOKENS, *longer, *characters]
    specials = [added(n, t, t in SPM_SPECIAL) for n, t in enumerate([*SPM_SPECIAL, *runs])]
    return {
        "added_tokens": specials,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": bos_template(SPM_SPECIAL.index("<bos>")),
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {text: number for number, text in enumerate(texts)},
            "merges": [[p[:-1], p[-1:]] for p in longer],
        },
    }


def added(number: int, content: str, special: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": special, **plain}


def bos_template(number: int) -> dict[str, Any]:
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, a],
        "pair": [bos, a, bos, b],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [number], "tokens": ["<bos>"]}},
    }
