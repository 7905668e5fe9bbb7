"""A GGUF file becomes a Hugging Face directory: weights, config, tokenizer, model card.

Why it exists: the embedded models exist only as GGUF, and a fine-tune starts from a directory. The
weights are exactly the file's dequantized values; config.json and the card say so, because
precision that quantizing lost does not come back. Flows in: a GGUF file. Flows out: a complete
directory or none. Not here: training, the other direction (hf_to_gguf.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from converters.checkpoint import SINGLE
from converters.families import family_of_architecture
from converters.families.family import Family, TensorPlacement
from converters.gguf_container import Metadata, read_metadata
from converters.output_file import OutputFile
from converters.quantizer import How, Quantizer, TensorJob
from converters.rows import Rows, gguf_rows, reordered
from converters.safetensors_file import map_file, pack_header
from converters.tokenizer_json import tokenizer_config, tokenizer_json
from edge_agent.atomic_file import sync_directory, write
from edge_agent.errors import ConversionError
from edge_agent.gguf.model_file import GgufFile, read_gguf
from edge_agent.regular_file import sha256_of

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufModel:
    """An opened GGUF model, and the meaning of its tensors."""

    gguf: GgufFile
    metadata: Metadata
    family: Family
    config: dict[str, Any]
    placements: tuple[TensorPlacement, ...]

    def rows(self) -> dict[str, Rows]:
        """The weights under their checkpoint names, ordered and shifted as a checkpoint stores
        them."""
        mapped = map_file(self.gguf.path)
        tensors = {tensor.name: tensor for tensor in self.gguf.tensors}
        return {
            place.source: reordered(
                gguf_rows(tensors[place.target], mapped, self.gguf.data_start),
                place.n_heads,
                -place.shift,
                to_gguf=False,
            )
            for place in self.placements
        }


def open_model(path: Path) -> GgufModel:
    """Open a GGUF file. Raises ModelFormatError, ConversionError when its tensors fit no known
    family."""
    gguf = read_gguf(path)
    metadata = read_metadata(path)
    family = family_of_architecture(path, gguf.architecture)
    names = {tensor.name for tensor in gguf.tensors}
    is_tied = "output.weight" not in names
    config = family.config(metadata, gguf.n_vocab, is_tied)
    if family.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in names
    placements = list(family.placements(config, gguf.n_vocab))
    _check_complete(gguf, placements)
    return GgufModel(gguf, metadata, family, config, tuple(placements))


def convert(path: Path, directory: Path, dtype: str = "f32", how: How | None = None) -> int:
    """Write `directory`, which must not exist, and return the bytes of its weights.

    Raises ConversionError, ModelFormatError; the directory then does not exist.

    Example: `convert(Path("gemma-q4_k_m.gguf"), Path("gemma-hf"), "bf16")`
    """
    model = open_model(path)
    weights = Weights(model.rows(), model.placements, dtype)
    return write_directory(directory, weights, documents(model, dtype), how or How())


@dataclass(frozen=True)
class Weights:
    """The tensors of a directory to be written, by their checkpoint names."""

    rows: Mapping[str, Rows]
    placements: Sequence[TensorPlacement]
    dtype: str


def write_directory(directory: Path, weights: Weights, documents: dict[str, Any], how: How) -> int:
    """Write weights and documents to a directory that appears complete or not at all.

    Returns the bytes of the weights. Raises ConversionError.
    """
    if directory.exists():
        raise ConversionError(
            f"cannot write {directory}", "it exists", "remove it or give another directory with -o"
        )
    scratch = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
        n_bytes = _write_weights(scratch / SINGLE, weights, how)
        for name, document in documents.items():
            write(scratch / name, _encoded(document), mode=0o644)
        os.replace(scratch, directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync_directory(directory.parent)
    return n_bytes


def _encoded(document: Any) -> bytes:
    if isinstance(document, bytes):
        return document
    if isinstance(document, str):
        return document.encode()
    # msgspec replaces half characters, which a vocabulary may contain and JSON may not.
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _write_weights(path: Path, weights: Weights, how: How) -> int:
    type_name = DTYPES[weights.dtype]
    stored = {place.source: (type_name, place.shape) for place in weights.placements}
    head, starts = pack_header(stored, {"format": "pt"})
    jobs = [TensorJob(weights.rows[name], type_name, starts[name]) for name in stored]
    with OutputFile(path) as output:
        output.write_at(0, head)
        Quantizer(output, how).run(jobs)
    return path.stat().st_size


def _check_complete(gguf: GgufFile, placements: Sequence[TensorPlacement]) -> None:
    shapes = {tensor.name: tuple(reversed(tensor.shape)) for tensor in gguf.tensors}
    for place in placements:
        if shapes.get(place.target) != place.shape:
            raise ConversionError(
                f"cannot convert {gguf.path}",
                f"the tensor {place.target} has the shape {shapes.get(place.target)},"
                f" its metadata asks for {place.shape}",
                "convert or fetch the file again",
            )
    unknown = set(shapes) - {place.target for place in placements} - {ROPE_FACTORS}
    if unknown:
        raise ConversionError(
            f"cannot convert {gguf.path}",
            f"{len(unknown)} tensors have no place in a checkpoint: {sorted(unknown)[0]}",
            "only dense models of the known families can be converted",
        )


def documents(model: GgufModel, dtype: str) -> dict[str, Any]:
    """The files beside the weights. Raises ConversionError for Llama 3's rotary factors."""
    if ROPE_FACTORS in {tensor.name for tensor in model.gguf.tensors}:
        raise ConversionError(
            f"cannot write {model.gguf.path} as a directory",
            f"the settings behind {ROPE_FACTORS} are not in the file",
            "start from the directory the file was made of",
        )
    origin = {
        "file": model.gguf.path.name,
        "sha256": sha256_of(model.gguf.path),
        "type": model.gguf.quantization,
    }
    config = {**model.config, **special_ids(model.metadata), "dtype": TORCH_DTYPES[dtype]}
    config["quantized_from"] = origin
    ids = special_ids(model.metadata)
    return {
        "config.json": config,
        "generation_config.json": {"do_sample": False, **ids},
        "tokenizer.json": tokenizer_json(model.metadata),
        "tokenizer_config.json": tokenizer_config(model.metadata),
        "README.md": _card(model, origin),
    }


def special_ids(metadata: Metadata) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id, as far as the file has them."""
    words = {"bos": "bos", "eos": "eos", "pad": "padding"}
    found = {r: metadata.get_value(f"tokenizer.ggml.{w}_token_id") for r, w in words.items()}
    return {f"{role}_token_id": number for role, number in found.items() if number is not None}


def _card(model: GgufModel, origin: dict[str, str]) -> str:
    licence = model.metadata.get_value("general.license")
    head = f"---\nlicense: {licence}\n---\n" if licence else ""
    name = model.metadata.get_value("general.name", model.gguf.path.stem)
    return (
        f"{head}# {name}\n\nThe weights are those of the quantized file `{origin['file']}`"
        f" ({origin['type']}, SHA-256 {origin['sha256']}), dequantized: what quantizing lost is"
        " not here. Made by `edge-convert to-hf`.\n"
    )
