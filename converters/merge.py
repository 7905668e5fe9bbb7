"""Adds an adapter to its base: one model again, as a GGUF file or a directory.

Flows in: a base (directory or GGUF file) and an adapter. Flows out: the tensors of the merged model
as rows, each summed in float32 while it is written. Rounding the sum to bfloat16 first would cost a
KL divergence of 2.7e-4. Not here: the quantizer (quantizer.py), the writers (gguf_output.py,
gguf_to_hf.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters import gguf_to_hf
from converters.adapter import Adapter, Pair, read_adapter
from converters.base_model import BaseModel, open_base
from converters.checkpoint import Checkpoint, open_checkpoint, read_json
from converters.families import family_of_config
from converters.families.family import TensorPlacement
from converters.gguf_container import Metadata
from converters.gguf_output import SourceTensor
from converters.gguf_to_hf import Weights, write_directory
from converters.hf_to_gguf import n_vocab
from converters.quantizer import How
from converters.rows import F32, PackedRows, Rows, SumRows, reordered, rotary_order

COPIED = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json", "chat_template.jinja", "vocab.json"),
    "merges.txt",
)
"""The files of a tokenizer, and the sampling that a model recommends."""
STALE = {"torch_dtype", "quantization_config", "vision_config", "mm_tokens_per_image"}
"""Members of config.json that are wrong beside plain weights of the text model alone."""


@dataclass(frozen=True)
class Merged:
    """A base, and an adapter that fits it."""

    base: BaseModel
    adapter: Adapter
    adapter_path: Path

    def tensors(self) -> list[SourceTensor]:
        """The merged weights for a GGUF file."""
        return [
            SourceTensor(t.name, t.shape, _sum(t.rows, self.adapter.get(t.name)))
            for t in self.base.tensors
        ]

    def metadata(self) -> Metadata:
        """The base's keys, and keys that say what was merged into it."""
        keys = Metadata(self.base.metadata)
        keys.put("string", "edge_agent.merged.adapter", self.adapter_path.name)
        if self.base.is_quantized:
            keys.put("string", "edge_agent.merged.base_quantization", self.base.quantization)
        return keys


def open_merged(base: Path, adapter: Path) -> Merged:
    """Open both. Raises ConversionError when the adapter is not for this base.

    Example: `open_merged(Path("gemma"), Path("my-adapter")).tensors()`
    """
    model = open_base(base)
    return Merged(model, read_adapter(adapter, model.placements), adapter)


def write_hf(merged: Merged, directory: Path, dtype: str, how: How) -> int:
    """Write the merged model as a directory and return the bytes of its weights."""
    base = merged.base
    rows: dict[str, Rows] = {}
    places = {tensor.name: base.placements[tensor.name] for tensor in base.tensors
              if tensor.name in base.placements}  # fmt: skip
    for tensor in base.tensors:
        place = places.get(tensor.name)
        if place is not None:
            assert isinstance(tensor.rows, PackedRows)
            pair = merged.adapter.get(tensor.name)
            trained = None if pair is None else as_trained(pair, place)
            rows[place.source] = _sum(_as_stored(tensor.rows, place), trained)
    weights = Weights(rows, tuple(places.values()), dtype)
    return write_directory(directory, weights, _documents(merged, dtype), how)


def _sum(rows: Rows, pair: Pair | None) -> Rows:
    return rows if pair is None else SumRows(rows, pair.a, pair.b, pair.scale)


def _as_stored(rows: PackedRows, place: TensorPlacement) -> PackedRows:
    """Rows of a base in the order and with the shift of a checkpoint.

    Rows that come from a checkpoint carry a reordering or shift for GGUF; dropping it restores
    them. Rows that come from a GGUF file need the inverse.
    """
    if rows.order is not None or rows.shift:
        return PackedRows(rows.name, rows.type, rows.data, rows.n_columns)
    return reordered(rows, place.n_heads, -place.shift, to_gguf=False)


def as_trained(pair: Pair, place: TensorPlacement) -> Pair:
    """The same pair with the rows of `b` in the order of a checkpoint."""
    if not place.n_heads:
        return pair
    b: F32 = pair.b[rotary_order(len(pair.b), place.n_heads, to_gguf=False)]
    return Pair(pair.a, np.ascontiguousarray(b), pair.scale)


def _documents(merged: Merged, dtype: str) -> dict[str, Any]:
    """config, tokenizer and card: copied from a directory, or made from a GGUF file's metadata."""
    base = merged.base
    if base.path.is_dir():
        documents = copied_documents(open_checkpoint(base.path), gguf_to_hf.TORCH_DTYPES[dtype])
    else:
        documents = gguf_to_hf.documents(gguf_to_hf.open_model(base.path), dtype)
    documents["README.md"] = _card(merged, dtype, str(documents.get("README.md", "")))
    return documents


def copied_documents(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """The files beside plain weights of torch's `dtype` with the names of a text model.

    config.json is that of the text part when the checkpoint is multimodal; the others are copied.
    """
    config = {
        name: value
        for name, value in checkpoint.config.items()
        if name not in STALE and not name.endswith("_token_index")
    }
    if is_multimodal(checkpoint.directory):
        family = family_of_config(checkpoint.directory, checkpoint.config)
        config |= {"architectures": [family.hf_architectures[0]], "model_type": family.model_type}
    config.setdefault("vocab_size", n_vocab(checkpoint))
    files = [checkpoint.directory / name for name in COPIED]
    found = {path.name: path.read_bytes() for path in files if path.is_file()}
    return {"config.json": {**config, "dtype": dtype}, **found}


def is_multimodal(base: Path) -> bool:
    """Whether a directory holds more than the text model that is read of it."""
    return base.is_dir() and isinstance(read_json(base / "config.json").get("text_config"), dict)


def _card(merged: Merged, dtype: str, inherited: str) -> str:
    base = merged.base
    origin = (
        f"the quantized file `{base.path.name}` ({base.quantization}), dequantized"
        if base.is_quantized
        else f"`{base.path.name}`"
    )
    part = ", without its vision part" if is_multimodal(base.path) else ""
    return (
        f"{inherited or '# Merged model'}\n\nThe LoRA adapter `{merged.adapter_path.name}`"
        f" ({len(merged.adapter)} weights) was added to {origin}{part}, in float32, and written as"
        f" {dtype}. Made by `edge-convert merge`.\n"
    )
