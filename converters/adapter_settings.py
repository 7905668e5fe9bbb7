"""adapter_config.json of a PEFT adapter: what each field does, or a refusal that names the field.

Why it exists: PEFT has a dozen kinds of LoRA that share one file format. Some change the base
before training, some add to it other than by W + scale * B A; matrices read without their field
give another model. Flows in: adapter_config.json. Flows out: AdapterSettings. Every field that PEFT
0.21 writes is in one of the tables below; one that is in none is refused. Not here: the matrices
(adapter.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.checkpoint import read_json
from converters.config_fields import is_absent
from edge_agent.errors import ConversionError

CONFIG = "adapter_config.json"
USED = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
WITHOUT_EFFECT = {
    # Where it comes from, and for what it was trained.
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("runtime_config", "task_type", "megatron_core"),
    # Which modules have matrices: the file of the matrices says so itself.
    *("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform"),
    *("target_parameters", "ensure_weight_tying"),
    # How it was trained. The settings of an initialization count only where init_lora_weights
    # names it, those of QALoRA only with use_qalora.
    *("lora_dropout", "corda_config", "eva_config", "lora_ga_config", "loftq_config"),
    "qalora_group_size",
}
KEEPS_BASE = {True, False, "eva", "gaussian", "mica", "orthogonal"}
"""Values of init_lora_weights that leave the weights of the base as they are."""
_MERGE = "merge it in PEFT (merge_and_unload), where PEFT can, and convert that"
_NO_SUM = "what it adds to a weight is not lora_alpha / r * B A"
REFUSED = {
    "alora_invocation_tokens": "it acts only from its invocation tokens on (aLoRA)",
    "arrow_config": "it chooses among several adapters for each token (Arrow)",
    "bias": "it trains biases",
    "fan_in_fan_out": "its matrices are transposed",
    "kasa_config": f"{_NO_SUM}, and it changes the base (KaSA)",
    "layer_replication": "it repeats layers of the base",
    "lora_bias": "it trains biases of its own",
    "megatron_config": "it is for Megatron's layers",
    "modules_to_save": "it saves whole modules, which a GGUF adapter cannot hold",
    "monteclora_config": f"{_NO_SUM} (MonteCLoRA)",
    "trainable_token_indices": "it trains single tokens",
    "use_bdlora": f"{_NO_SUM} (BD-LoRA)",
    "use_dora": "it is DoRA: its magnitudes have no place in a GGUF adapter",
    "use_qalora": f"{_NO_SUM} (QALoRA)",
    "velora_config": "it holds projections for training (VeLoRA)",
}
"""Fields whose feature changes the sum, with the reason. Null, false and empty: not in use."""
KNOWN = USED | WITHOUT_EFFECT | REFUSED.keys()


@dataclass(frozen=True)
class AdapterSettings:
    """Ranks and scalings, by PEFT's names. `r` None: the matrices alone say it."""

    r: int | None
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]

    def rank(self, module: str) -> float | None:
        """The rank that the file gives to the module, if it gives one."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), by the module's own alpha.

        `module` is its name in the model that was trained.
        """
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        assert alpha is not None
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_settings(directory: Path) -> AdapterSettings:
    """Read the file. Raises ConversionError that names the first field which cannot be obeyed."""
    fields = {
        name: value for name, value in read_json(directory / CONFIG).items() if not is_absent(value)
    }
    if fields.get("peft_type") != "LORA":
        raise refusal(directory, f"it is {fields.get('peft_type')}, not LORA")
    for name, value in fields.items():
        _check(directory, name, value)
    rank, alpha = fields.get("r"), fields.get("lora_alpha", 8)
    return AdapterSettings(
        r=None if rank is None else int(_positive(directory, "r", rank)),
        lora_alpha=_positive(directory, "lora_alpha", alpha),  # PEFT's default is 8
        use_rslora=bool(fields.get("use_rslora", False)),
        rank_pattern=_pattern(directory, "rank_pattern", fields),
        alpha_pattern=_pattern(directory, "alpha_pattern", fields),
    )


def refusal(path: Path, why: str, hint: str = "") -> ConversionError:
    """The error for an adapter that cannot be used."""
    return ConversionError(
        f"cannot use the adapter {path}", why, hint or "train a plain LoRA adapter with PEFT"
    )


def _check(directory: Path, name: str, value: Any) -> None:
    """Raise ConversionError for a field that changes the sum, or that is not known."""
    if name == "init_lora_weights":
        _check_init(directory, value)
    elif name == "use_rslora" and not isinstance(value, bool):
        raise refusal(directory, f"use_rslora is {value!r}", "write true or false")
    elif name in REFUSED and value is not False and (name, value) != ("bias", "none"):
        raise refusal(directory, f"{REFUSED[name]} ({name})", _MERGE)
    elif not (value is False or name in KNOWN or name.startswith(("_", "unsloth_"))):
        raise refusal(
            directory,
            f"{CONFIG} has {name[:60]}: {str(value)[:60]}, a field that is not known here",
            f"take it out of {CONFIG} if the adapter computes the same without it; else {_MERGE}",
        )


def _check_init(directory: Path, value: Any) -> None:
    init = value.lower() if isinstance(value, str) else value
    if isinstance(init, list | dict) or init not in KEEPS_BASE:
        raise refusal(
            directory,
            f"init_lora_weights is {value!r}: that initialization changes the weights of the base,"
            " or is not known",
            "save it in PEFT as a plain LoRA (save_pretrained with"
            " path_initial_model_for_weight_conversion), or merge it there (merge_and_unload) and"
            " convert that",
        )


def _pattern(directory: Path, name: str, fields: Mapping[str, Any]) -> dict[str, float]:
    found = fields.get(name, {})
    if not isinstance(found, dict):
        raise refusal(directory, f"{name} is {found!r}", "it must map modules to numbers")
    for key, value in found.items():
        _positive(directory, f"{name}[{key!r}]", value)
        try:
            re.compile(key)
        except re.error as error:
            raise refusal(directory, f"{name} has {key!r}: {error}", "mend the pattern") from None
    return found


def _positive(directory: Path, name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < 1 << 24:
        raise refusal(directory, f"{name} is {value!r}", "it must be positive")
    return float(value)


def _by_pattern(patterns: Mapping[str, float], module: str, default: float | None) -> float | None:
    """PEFT's rule: the first pattern that matches the end of the module's name, from a dot on."""
    matching = (p for p in patterns if re.match(rf"(.*\.)?({p})$", module))
    return next((patterns[p] for p in matching), default)
