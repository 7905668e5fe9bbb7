"""Is a converted checkpoint the model that transformers loads, whatever config.json says?

Why it exists: a member of config.json that a converter overlooks gives another model, and no error.
Each row changes one member of a tiny random checkpoint of one family and asks `edge-convert hf` for
a float32 file: either its logits are those of transformers (KL <= 1e-5 over 64 tokens, in a single
sequence) or it is refused by name. Flows in: nothing. Flows out: a table, and as the last line one
JSON document; exit status 1 when a row is neither. Needs torch and transformers. Not here: weights
of trained models (convert_equal.py), tokenizers.

    HOST/bin/python benchmarks/convert_fields.py [--only rope]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from safetensors_writer import write_arrays
from tiny_checkpoint import HEAD, D, write_checkpoint

from converters import hf_to_gguf
from converters.divergence import Divergence, log_softmax
from converters.gguf_output import write_model
from converters.logits import LlamaLogits, TorchLogits
from converters.quantizer import How
from edge_agent.errors import EdgeAgentError
from edge_agent.llama.type_plan import TypeRequest

GATE = 1e-5
N_TOKENS = 64
N_LAYER = 7
"""Gemma's layers here: the sixth is its first that is not a sliding-window layer."""
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}

COMMON: dict[str, dict[str, Any]] = {
    "as it is": {},
    "neutral members": {
        "_name_or_path": "x", "sep_token_id": 3, "torch_dtype": "float32", "use_cache": False,
        "transformers_version": "4.0.0", "initializer_range": 0.1, "attention_dropout": 0.1,
        "pretraining_tp": 2, "unsloth_fixed": True, "id2label": {"0": "a"},
        "rope_scaling": None, "rope_interleaved": False, "use_mrope": False, "mlp_bias": None,
        "partial_rotary_factor": 1.0, "cache_implementation": "hybrid", "sliding_windows": [],
    },
    "unknown member": {"residual_multiplier": 0.5},
    "rms_norm_eps 1e-2": {"rms_norm_eps": 1e-2},
    "rope_theta 500": {"rope_theta": 500.0},
    "rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "rope_scaling linear": {"rope_scaling": LINEAR},
    "rope_scaling, old word": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_scaling beside rope_parameters": {
        "rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "rope_parameters by layer type": {
        "rope_parameters": {
            "full_attention": {**LINEAR, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "both by layer type": {
        "rope_scaling": LINEAR,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "yarn": {"rope_scaling": YARN},
    "yarn attention_factor": {"rope_scaling": {**YARN, "attention_factor": 1.5}},
    "yarn mscale": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}},
    "yarn mscale alone": {"rope_scaling": {**YARN, "mscale": 0.7}},
    "yarn truncate false": {"rope_scaling": {**YARN, "truncate": False}},
    "yarn beta_fast": {"rope_scaling": {**YARN, "beta_fast": 8.0}},
    "yarn original at the top": {
        "rope_scaling": {**YARN, "original_max_position_embeddings": 16},
        "original_max_position_embeddings": 32,
    },
    "yarn no factor": {"rope_scaling": {**YARN, "factor": None}},
    "llama3": {"rope_scaling": LLAMA3},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "longrope": {
        "rope_scaling": {
            "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
            "factor": 4.0, "original_max_position_embeddings": 32,
        },
    },
    "rope key unknown": {"rope_scaling": {**LINEAR, "alpha": 2.0}},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "tie and another head": {"tie_word_embeddings": True, "lm_head": "other"},
    "tie and the same head": {"tie_word_embeddings": True, "lm_head": "same"},
    "no tie": {"tie_word_embeddings": False, "lm_head": "other"},
    "no tie, no head": {"tie_word_embeddings": False, "lm_head": None},
    "hidden_act gelu": {"hidden_act": "gelu"},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "layer_types all full": {"layer_types": ["full_attention"] * 2},
    "layer_types": {"layer_types": ["full_attention", "sliding_attention"]},
    "quantization_config, stale": {"quantization_config": {"quant_method": "bitsandbytes"}},
}  # fmt: skip
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "gemma3": {
        "sliding_window 8": {"sliding_window": 8},
        "sliding_window_pattern 2": {"sliding_window_pattern": 2},
        "sliding_window_pattern 1": {"sliding_window_pattern": 1},
        "layer_types of 5 and 1": {
            "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        },
        "query_pre_attn_scalar": {"query_pre_attn_scalar": 4 * HEAD},
        "query_pre_attn_scalar absent": {"query_pre_attn_scalar": None},
        "hidden_activation": {"hidden_activation": "silu"},
        "final_logit_softcapping": {"final_logit_softcapping": 5.0},
        "attn_logit_softcapping": {"attn_logit_softcapping": 5.0},
        "use_bidirectional_attention": {"use_bidirectional_attention": True},
        "rope_local_base_freq": {"rope_local_base_freq": 500.0},
        "rope_local_base_freq absent": {"rope_local_base_freq": None},
    },
    "qwen2": {
        "use_sliding_window": {
            "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0,
        },
        "sliding_window without use": {"sliding_window": 8, "max_window_layers": 0},
        "head_dim": {"head_dim": HEAD},
    },
    "qwen3": {
        "use_sliding_window": {
            "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0,
        },
        "sliding_window without use": {"sliding_window": 8, "max_window_layers": 0},
    },
    "llama": {"sliding_window": {"sliding_window": 8}, "hidden_act swish": {"hidden_act": "swish"}},
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """`kl` in nats, the mean over the positions; None: refused, or broken."""

    family: str
    case: str
    kl: float | None
    error: str

    @property
    def verdict(self) -> str:
        if self.kl is not None:
            return "equal" if self.kl <= GATE else "DIFFERS"
        return "refused" if self.error.startswith("refused") else "BROKEN"


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for family in FAMILIES:
        for case, changes in {**COMMON, **OWN[family]}.items():
            yield family, case, changes


def measure(family: str, case: str, changes: dict[str, Any], scratch: Path) -> Row:
    directory, path = scratch / "hf", scratch / "m.gguf"
    prepare(directory, family, dict(changes))
    try:
        metadata, tensors = hf_to_gguf.load(directory)
        write_model(path, metadata, tensors, TypeRequest("F32"), How(threads=1))
    except EdgeAgentError as error:
        return Row(family, case, None, f"refused: {error.why}")
    except Exception as error:
        return Row(family, case, None, f"{type(error).__name__}: {error}")
    try:
        return Row(family, case, divergence(directory, path), "")
    except Exception as error:
        return Row(family, case, None, f"{type(error).__name__}: {error}")


def prepare(directory: Path, family: str, changes: dict[str, Any]) -> None:
    """A random checkpoint with these members; None takes a member out."""
    head = changes.pop("lm_head", "as it is")
    n_layer = N_LAYER if family == "gemma3" else 2
    arrays = write_checkpoint(directory, family, is_tied=head != "as it is", n_layer=n_layer)
    size = len(arrays["model.embed_tokens.weight"])
    if head in ("same", "other"):
        other = np.random.default_rng(9).standard_normal((size, D)).astype(np.float32) / 8
        arrays["lm_head.weight"] = (
            arrays["model.embed_tokens.weight"].copy() if head == "same" else other
        )
        write_arrays(directory / "model.safetensors", arrays)
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    if "layer_types" in changes and len(set(changes["layer_types"])) == 1:
        config["layer_types"] = config["layer_types"][:1] * n_layer
    config = {name: value for name, value in config.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))


def divergence(directory: Path, path: Path) -> float:
    """Mean KL of the file from transformers' logits on the same random tokens."""
    theirs, ours = TorchLogits(directory, 1), LlamaLogits(path, exact=True, threads=1)
    tokens = np.random.default_rng(0).integers(0, ours.vocabulary.n_tokens, N_TOKENS).tolist()
    found = Divergence()
    a, b = theirs.logits(tokens), ours.logits(tokens)
    found.add(log_softmax(a), log_softmax(b))
    for source in (theirs, ours):
        source.close()
    return found.mean


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    options = parser.parse_args()
    rows = []
    for family, case, changes in cases():
        if options.only in case:
            with tempfile.TemporaryDirectory() as scratch:
                rows.append(measure(family, case, changes, Path(scratch)))
            row = rows[-1]
            figure = "" if row.kl is None else f"{row.kl:.1e}"
            print(
                f"| {family} | {case} | {row.verdict} | {figure or row.error[:110]} |", flush=True
            )
    counts = {v: sum(r.verdict == v for r in rows) for v in sorted({r.verdict for r in rows})}
    print(json.dumps({"counts": counts, "rows": [vars(row) for row in rows]}))
    return 1 if {"DIFFERS", "BROKEN"} & set(counts) else 0


if __name__ == "__main__":
    sys.exit(main())
