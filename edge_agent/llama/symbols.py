"""What this room calls of llama.cpp, and a check that the installed library has all of it.

Why it exists: llama.cpp renames and removes functions, and ctypes accepts an unknown field of a
struct without a word. Both would show as a traceback or a wrong setting while a model loads; the
check finds them before, by name. Flows in: llama-cpp-python's module of declarations. Flows out:
LibraryMismatch, or nothing. Not here: loading the library (binding.py). tests/llama/test_symbols.py
compares the lists with the calls.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from edge_agent.errors import LibraryMismatch

WANTED = "llama-cpp-python>=0.3.36,<0.4"
"""As in pyproject.toml."""

DECLARED = """
ggml_abort_callback ggml_backend_sched_eval_callback
llama_adapter_lora_free llama_adapter_lora_init llama_adapter_lora_p_ctypes
llama_backend_init llama_context_default_params llama_decode llama_free llama_get_logits_ith
llama_get_memory llama_init_from_model llama_log_callback llama_log_set llama_memory_clear
llama_memory_seq_pos_min llama_memory_seq_rm llama_model_chat_template
llama_model_default_params llama_model_desc llama_model_free llama_model_get_vocab
llama_model_load_from_file llama_model_meta_val_str llama_model_n_ctx_train llama_model_n_embd
llama_model_n_layer llama_model_n_params llama_model_n_swa llama_model_quantize
llama_model_quantize_default_params llama_model_size llama_n_ctx_seq llama_print_system_info
llama_sampler_accept llama_sampler_apply llama_sampler_chain_add
llama_sampler_chain_default_params llama_sampler_chain_init llama_sampler_free
llama_sampler_init_dist llama_sampler_init_grammar llama_sampler_init_greedy
llama_sampler_init_logit_bias llama_sampler_init_min_p llama_sampler_init_penalties
llama_sampler_init_temp llama_sampler_init_top_k llama_sampler_init_top_p
llama_sampler_init_typical llama_sampler_sample
llama_set_abort_callback llama_set_adapters_lora llama_synchronize llama_token_to_piece
llama_tokenize llama_version llama_vocab_bos llama_vocab_eos llama_vocab_eot
llama_vocab_get_add_bos llama_vocab_get_attr llama_vocab_get_text llama_vocab_is_eog
llama_vocab_n_tokens
"""
"""Functions and callback types, separated by white space, that llama-cpp-python declares."""

EXPORTED = """
ggml_free ggml_get_type_traits ggml_init ggml_mul_mat ggml_new_tensor_2d ggml_op_name
ggml_quantize_chunk ggml_quantize_requires_imatrix ggml_set_name llama_log_get llama_log_set
"""
"""Functions of the shared library that this room declares itself (binding.c_function)."""

FIELDS = {
    "llama_batch": "n_tokens token pos n_seq_id seq_id logits",
    "llama_context_params": "cb_eval flash_attn_type kv_unified n_batch n_ctx n_outputs_max"
    " n_seq_max n_threads n_threads_batch n_ubatch no_perf swa_full type_k type_v",
    "llama_logit_bias": "token bias",
    "llama_model_imatrix_data": "name data size",
    "llama_model_params": "load_mode n_gpu_layers no_alloc use_extra_bufts vocab_only",
    "llama_model_quantize_params": "dry_run ftype imatrix nthread output_tensor_type"
    " token_embedding_type tt_overrides",
    "llama_model_tensor_override": "pattern type",
    "llama_token_data": "id logit p",
    "llama_token_data_array": "data size selected sorted",
}
"""Struct -> the fields that are set or read."""


def missing(declarations: Any) -> list[str]:
    """Names of DECLARED, EXPORTED and FIELDS (`struct.field`) that the library does not have."""
    found = [name for name in DECLARED.split() if not hasattr(declarations, name)]
    library = getattr(declarations, "_lib", None)
    found += [name for name in EXPORTED.split() if not hasattr(library, name)]
    for struct, fields in FIELDS.items():
        known = {field[0] for field in getattr(getattr(declarations, struct, None), "_fields_", ())}
        found += [f"{struct}.{field}" for field in fields.split() if field not in known]
    return sorted(set(found))


def check(declarations: Any) -> None:
    """Raises LibraryMismatch when the library lacks anything that this room calls."""
    if lacking := missing(declarations):
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise mismatch(f"does not have {', '.join(lacking[:3])}{more}", "edge-agent needs it")


def mismatch(what: str, why: str) -> LibraryMismatch:
    """The error for an installed llama-cpp-python that `what`."""
    try:
        version = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    return LibraryMismatch(f"llama-cpp-python {version} {what}", why, f"pip install '{WANTED}'")
