"""A LoRA adapter, from a PEFT directory or a GGUF file, in GGUF's terms.

Why it exists: PEFT can give every module its own rank and scaling (rank_pattern, alpha_pattern,
rsLoRA: alpha / sqrt(r)), but a GGUF adapter has one alpha, and llama.cpp computes alpha / rank per
tensor. Here the scaling of every module is known, whichever way it was written. Flows in: a path,
and the tensors of the base. Flows out: an Adapter. Not here: the settings of a PEFT adapter
(adapter_settings.py), writing one (lora_to_gguf.py), adding it to weights (merge.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.adapter_settings import CONFIG, read_settings, refusal
from converters.checkpoint import refuse_code, text_name, unwrapped
from converters.families.family import TensorPlacement
from converters.gguf_arrays import read_arrays
from converters.rows import F32, check_finite, rotary_order, stored_rows
from converters.safetensors_file import StoredTensor, map_file, read_header

WEIGHTS = "adapter_model.safetensors"
_MATRIX = re.compile(r"(.+?)\.lora_([AB])(?:\.\w+)?\.weight")


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


def _read_peft(directory: Path, placements: Mapping[str, TensorPlacement]) -> Adapter:
    refuse_code(directory)
    settings = read_settings(directory)
    sources = {place.source.removesuffix(".weight"): place for place in placements.values()}
    found: dict[str, Pair] = {}
    for module, pair in _matrices(directory).items():
        place = sources.get(text_name(module))
        if place is None:
            raise refusal(directory, _no_place(module, sources), "train without that module")
        if set(pair) != {"A", "B"}:
            raise refusal(directory, f"{module} has only one of lora_A and lora_B")
        rank = len(pair["A"])
        if settings.rank(module) not in (None, rank):
            why = f"r and rank_pattern of {CONFIG} give it {settings.rank(module):g}"
            raise refusal(
                directory,
                f"lora_A of {module} has {rank} rows, {why}",
                "give the file it was saved with",
            )
        if place.target in found:
            raise refusal(directory, f"two of its modules are {place.target}", "keep one of them")
        scale = settings.scale(module, rank)
        found[place.target] = Pair(pair["A"], _ordered(pair["B"], place), scale)
    return found


def _matrices(directory: Path) -> dict[str, dict[str, F32]]:
    """lora_A and lora_B, as "A" and "B", by the name of their module in the trained model."""
    tensors, mapped = read_header(directory / WEIGHTS), map_file(directory / WEIGHTS)
    found: dict[str, dict[str, F32]] = {}
    for name, tensor in tensors.items():
        module, side = _module(directory, name)
        if side in found.setdefault(module, {}):
            raise refusal(directory, f"it has two lora_{side} of {module}", "keep one of them")
        found[module][side] = _array(tensor, mapped)
    return found


def _module(directory: Path, name: str) -> tuple[str, str]:
    """(name of the module in the trained model, "A" or "B") of a matrix. Raises
    ConversionError."""
    match = _MATRIX.fullmatch(unwrapped(name))
    if match is None:
        raise refusal(
            directory,
            f"{name} is neither lora_A nor lora_B of a linear layer",
            "adapters of embeddings and whole modules have no place in a GGUF adapter; weights of"
            " the base that PEFT saved with it stay out with save_embedding_layers=False",
        )
    return match.group(1), match.group(2)


def _no_place(module: str, sources: Mapping[str, TensorPlacement]) -> str:
    if module == "lm_head":
        return (
            "it trains lm_head, but this base ties its head to the embedding: the adapter would"
            " change both, which a GGUF adapter cannot"
        )
    return f"it trains {module}, which this base does not have"


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
