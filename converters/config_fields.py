"""What each member of config.json means to a conversion: read, without effect, or refused.

Why it exists: a member that is not known may change the function of the model, and a converted file
that answers differently is worse than none. So every member is in one of four classes: read (the
family's module does it), without effect on a decoder's logits, right at one value only, or unknown
and refused by name. `--ignore-field NAME` takes a member out before anything is read. null, "", []
and {} count as absent. Flows in: config.json, the text part's members at its top. Flows out:
nothing, or ConversionError. The classes follow transformers 4 and 5 (PreTrainedConfig and the four
families' configurations). Not here: the values that are read (families/family.py,
families/rope.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from edge_agent.errors import ConversionError

Config = Mapping[str, Any]


def _words(text: str) -> list[str]:
    return text.split()


READ = frozenset(
    _words("""
    architectures model_type vocab_size num_hidden_layers max_position_embeddings
    hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim
    rms_norm_eps rope_theta rope_scaling rope_parameters original_max_position_embeddings
    partial_rotary_factor tie_word_embeddings text_config layer_types
""")
)
"""Read, or checked, for every family."""

TEXT_ONLY = frozenset(
    {*READ, "sliding_window", "sliding_window_pattern", "query_pre_attn_scalar",
     "final_logit_softcapping", "rope_local_base_freq"}
    - {"architectures", "tie_word_embeddings"}
)  # fmt: skip
"""Members that have no effect beside a text_config, outside of it."""

TEXT = "text_config."

NO_EFFECT = frozenset(
    _words("""
    transformers.js_config torch_dtype dtype transformers_version use_cache
    cache_implementation initializer_range pretraining_tp is_llama_config
    max_window_layers vision_config mm_tokens_per_image name_or_path tokenizer_class
    auto_map quantization_config attn_implementation output_hidden_states
    output_attentions output_scores return_dict return_dict_in_generate
    chunk_size_feed_forward id2label label2id num_labels problem_type finetuning_task
    task_specific_params is_decoder cross_attention_hidden_size tie_encoder_decoder
    tie_last_hidden_states torchscript use_bfloat16 tf_legacy_loss prefix max_length
    min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens quantized_from off_grid_twin
""")
)
"""Storage, training, other files' matters, and the base class's members for generation. A
quantization_config is stale where the weights are plain; packed weights are refused by their type
or their names."""
_NO_EFFECT = re.compile(r"_|unsloth_|.*(_token_ids?|_token_index|_dropout)$")

ONLY: Mapping[str, tuple[Any, ...]] = {
    "use_sliding_window": (False,),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "use_bidirectional_attention": (False,),
    "mlp_bias": (False,),
    "attention_bias": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
"""Members that are right at these values only; a family may say others."""

IGNORED_KEY = "edge_agent.ignored_config_fields"
"""Metadata key of the members that --ignore-field took out."""


def check_members(
    config: Config, reads: Iterable[str], only: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raise ConversionError for the first member that is unknown or has another value than `only`
    and ONLY say. `reads` are the family's own members."""
    known = {*READ, *NO_EFFECT, *reads}
    allowed = {**ONLY, **only}
    for name, value in config.items():
        if name in known or is_absent(value) or _NO_EFFECT.match(name):
            continue
        if name not in allowed:
            raise field_error(name, config, "this converter does not know what it changes")
        if not any(value == one and type(value) is type(one) for one in allowed[name]):
            values = " or ".join(json.dumps(one) for one in allowed[name]) or "null"
            raise field_error(name, config, f"llama.cpp computes {values} only here")


def without(config: Config, ignored: Iterable[str]) -> dict[str, Any]:
    """config.json without these members; `rope_parameters.truncate` names a nested one. Raises
    ConversionError for a member that config.json does not have."""
    found: dict[str, Any] = dict(config)
    for name in ignored:
        *parents, last = [name] if name in found else name.removeprefix(TEXT).split(".")
        holder = found
        for parent in parents:
            inner = holder.get(parent)
            holder[parent] = dict(inner) if isinstance(inner, dict) else {}
            holder = holder[parent]
        if last not in holder:
            raise ConversionError(
                f"--ignore-field names {name!r}", "config.json has no such member", "leave it out"
            )
        del holder[last]
    return found


def is_absent(value: Any) -> bool:
    """Whether a value means "not given"."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def real(holder: Mapping[str, Any], name: str, prefix: str = "") -> float | None:
    """A finite number; None when it is absent. Raises ConversionError."""
    value = holder.get(name)
    if is_absent(value):
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or not is_number or not math.isfinite(value) or abs(value) > 1e30:
        raise field_error(prefix + name, holder, "it must be a finite number")
    return float(value)


def field_error(name: str, holder: Mapping[str, Any], why: str) -> ConversionError:
    """The error for a member; `holder` has it under the last part of `name`."""
    value = holder.get(name, holder.get(name.rpartition(".")[2]))
    return ConversionError(
        "cannot convert this checkpoint",
        f"{name} of config.json is {json.dumps(value)[:120]}, and {why}",
        f"`edge-convert hf --ignore-field {name}` converts as if it were not there; the model"
        " may then answer differently",
    )
