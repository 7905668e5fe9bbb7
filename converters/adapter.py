"""A LoRA adapter, from a PEFT directory or a GGUF file, in GGUF's terms.

Why it exists: PEFT can give every module its own rank and scaling (rank_pattern, alpha_pattern,
rsLoRA: alpha / sqrt(r)), but a GGUF adapter has one alpha, and llama.cpp computes alpha / rank per
tensor. Here the scaling of every module is known, whichever way it was written. An adapter that
GGUF cannot express is refused with the reason. Flows in: a path, and the tensors of the base. Flows
out: an Adapter. Not here: writing one (lora_to_gguf.py), adding it to weights (merge.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import read_json, refuse_code
from converters.families.family import TensorPlacement
from converters.gguf_arrays import read_arrays
from converters.rows import F32, check_finite, rotary_order, stored_rows
from converters.safetensors_file import StoredTensor, map_file, read_header
from edge_agent.errors import ConversionError

WEIGHTS = "adapter_model.safetensors"
_MODULE = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Pair:
    """W + scale * b @ a for one weight: float32 `a` (r, inputs) and `b` (outputs, r).

    The rows of `b` are in the order of the GGUF tensor.
    """

    a: F32
    b: F32
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return int(self.a.shape[0])


Adapter = Mapping[str, Pair]
"""GGUF name of the weight (`blk.0.attn_q.weight`) -> its two matrices."""


def read_adapter(path: Path, placements: Mapping[str, TensorPlacement]) -> Adapter:
    """The adapter in `path`, a PEFT directory or a GGUF file, for a base with these `placements`.

    Raises ConversionError when `path` is no adapter, when GGUF cannot express it, or when it
    belongs to another model.

    Example: `read_adapter(Path("my-adapter"), open_base(Path("gemma-q8_0.gguf")).placements)`
    """
    adapter = _read_peft(path, placements) if path.is_dir() else _read_gguf(path)
    if not adapter:
        raise refusal(path, "it holds no LoRA matrices")
    for name, pair in adapter.items():
        place = placements.get(name)
        shape = (pair.b.shape[0], pair.a.shape[1])
        if place is None or place.shape != shape or pair.b.shape[1] != pair.rank:
            wanted = "no such tensor" if place is None else f"{list(place.shape)}"
            raise refusal(
                path,
                f"{name} is for a weight of {list(shape)}, the base has {wanted}",
                "give the base model it was trained on",
            )
        for matrix in (pair.a, pair.b):
            check_finite(f"{path.name}: {name}", matrix)
    return adapter


def refusal(path: Path, why: str, hint: str = "") -> ConversionError:
    """The error for an adapter that cannot be used."""
    return ConversionError(
        f"cannot use the adapter {path}", why, hint or "train a plain LoRA adapter with PEFT"
    )


def _read_peft(directory: Path, placements: Mapping[str, TensorPlacement]) -> Adapter:
    refuse_code(directory)
    settings = read_json(directory / "adapter_config.json")
    _refuse_unsupported(directory, settings)
    tensors = read_header(directory / WEIGHTS)
    mapped = map_file(directory / WEIGHTS)
    sources = {place.source.removesuffix(".weight"): place for place in placements.values()}
    matrices: dict[str, dict[str, F32]] = {}
    for name, tensor in tensors.items():
        module, side = _module(directory, name)
        matrices.setdefault(module, {})[side] = _array(tensor, mapped)
    found = {}
    for module, pair in matrices.items():
        place = sources.get(module)
        if place is None:
            raise refusal(directory, _no_place(module, sources), "train without that module")
        if set(pair) != {"A", "B"}:
            raise refusal(directory, f"{module} has only one of lora_A and lora_B")
        scale = _scaling(directory, settings, module, pair["A"].shape[0])
        found[place.target] = Pair(pair["A"], _ordered(pair["B"], place), scale)
    return found


def _refuse_unsupported(directory: Path, settings: Mapping[str, Any]) -> None:
    """Raise ConversionError for settings whose change of the weights is not W + scale * B A."""
    kind = settings.get("peft_type")
    problems = {
        f"it is {kind}, not LORA": kind != "LORA",
        "it is DoRA (use_dora): its magnitudes have no place in a GGUF adapter": settings.get(
            "use_dora"
        ),
        "it saves whole modules (modules_to_save), which a GGUF adapter cannot hold": settings.get(
            "modules_to_save"
        ),
        "it trains biases (bias)": settings.get("bias", "none") != "none",
        "it trains biases of its own (lora_bias)": settings.get("lora_bias"),
        "its matrices are transposed (fan_in_fan_out)": settings.get("fan_in_fan_out"),
        "it trains single tokens (trainable_token_indices)": settings.get(
            "trainable_token_indices"
        ),
    }
    for why, is_so in problems.items():
        if is_so:
            raise refusal(directory, why, "merge it in PEFT (merge_and_unload) and convert that")


def _module(directory: Path, name: str) -> tuple[str, str]:
    """(module name, "A" or "B") of a matrix. Raises ConversionError."""
    match = _MODULE.fullmatch(name)
    if match is None:
        raise refusal(
            directory,
            f"{name} is neither lora_A nor lora_B of a linear layer",
            "adapters of embeddings and whole modules have no place in a GGUF adapter",
        )
    module = match.group(1).replace("language_model.model.", "model.")
    return module.replace("model.language_model.", "model."), match.group(2)


def _no_place(module: str, sources: Mapping[str, TensorPlacement]) -> str:
    if module == "lm_head":
        return (
            "it trains lm_head, but this base ties its head to the embedding: the adapter would"
            " change both, which a GGUF adapter cannot"
        )
    return f"it trains {module}, which this base does not have"


def _scaling(directory: Path, settings: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with the module's own alpha."""
    alpha = settings.get("lora_alpha")
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        # PEFT's rule: a pattern must match the end of the module's name, from a dot on.
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        raise refusal(directory, f"lora_alpha of {module} is {alpha!r}", "it must be positive")
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _array(tensor: StoredTensor, mapped: Any) -> F32:
    rows = stored_rows(tensor, mapped)
    array = np.empty((rows.n_rows, rows.n_columns), np.float32)
    rows.read(0, array)
    return array


def _ordered(b: F32, place: TensorPlacement) -> F32:
    """The rows of `b` in the order of the GGUF tensor."""
    if not place.n_heads or b.shape[0] != place.shape[0]:
        return b
    return np.ascontiguousarray(b[rotary_order(len(b), place.n_heads, to_gguf=True)])


def _read_gguf(path: Path) -> Adapter:
    metadata, arrays = read_arrays(path, refusal)
    if metadata.get_value("adapter.type") != "lora":
        raise refusal(path, "adapter.type is not lora", "give a GGUF LoRA adapter")
    alpha = metadata.get_value("adapter.lora.alpha", 0.0)
    names = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in arrays}
    found = {}
    for name in sorted(names):
        a, b = arrays.get(f"{name}.lora_a"), arrays.get(f"{name}.lora_b")
        if a is None or b is None:
            raise refusal(path, f"{name} has only one of lora_a and lora_b")
        # For llama.cpp an alpha of 0 means a scale of 1 (llama-adapter.h).
        found[name] = Pair(a, b, alpha / len(a) if alpha else 1.0)
    return found
