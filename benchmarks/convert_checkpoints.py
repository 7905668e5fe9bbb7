"""Checkpoints to convert: the embedded models as directories, random Qwens with Qwen's tokenizer.

Used by convert_equal.py and convert_speed.py. Random weights are enough to measure speed and
equality, and say nothing about quality. The Qwen tokenizer is Qwen 2's, from the vocabulary file in
llama.cpp's source; Qwen 2.5's additional control tokens are added here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.families import FAMILIES
from converters.families.family import Family, TensorPlacement
from converters.gguf_container import Metadata, read_pairs
from converters.output_file import OutputFile
from converters.safetensors_file import pack_header
from converters.tokenizer_json import tokenizer_config, tokenizer_json
from converters.vocabulary import CONTROL

QWEN25_CONTROL = (
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
"""Qwen 2.5's tokens after Qwen 2's three added ones, from its published tokenizer_config.json."""


def family(architecture: str) -> Family:
    return next(f for f in FAMILIES if f.architecture == architecture)


def qwen_tokenizer(vocabulary: Path) -> Metadata:
    """Metadata of ggml-vocab-qwen2.gguf with Qwen 2.5's control tokens at the end."""
    with vocabulary.open("rb") as stream:
        metadata = read_pairs(stream)
    tokens = list(metadata.get_value("tokenizer.ggml.tokens"))
    types = list(metadata.get_value("tokenizer.ggml.token_type"))
    while tokens[-1].startswith("[PAD"):
        tokens.pop()
        types.pop()
    tokens += [token for token in QWEN25_CONTROL if token not in tokens]
    types += [CONTROL] * (len(tokens) - len(types))
    metadata.put_array("string", "tokenizer.ggml.tokens", tokens)
    metadata.put_array("i32", "tokenizer.ggml.token_type", types)
    metadata.put("u32", "qwen2.context_length", 32768)
    return metadata


def write_random(
    directory: Path,
    kind: Family,
    config: dict[str, Any],
    *,
    dtype: str = "BF16",
    shards: int = 1,
    seed: int = 1,
) -> None:
    """config.json and safetensors of a random model, tensor by tensor, in `shards` files."""
    directory.mkdir(parents=True)
    config = {
        "architectures": [kind.hf_architectures[0]],
        "model_type": kind.model_type,
        "dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype],
        **config,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    places = [p for p in kind.placements(config, config["vocab_size"]) if not p.is_optional]
    rng = np.random.default_rng(seed)
    if shards == 1:
        _write(directory / "model.safetensors", places, dtype, rng)
        return
    weight_map = {}
    for number, part in enumerate(_parts(places, shards), 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        _write(directory / name, part, dtype, rng)
        weight_map |= {place.source: name for place in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(directory: Path, metadata: Metadata) -> None:
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json(metadata)))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(metadata)))


def _parts(places: Sequence[TensorPlacement], count: int) -> Iterator[list[TensorPlacement]]:
    step = -(-len(places) // count)
    for first in range(0, len(places), step):
        yield list(places[first : first + step])


def _write(
    path: Path, places: Sequence[TensorPlacement], dtype: str, rng: np.random.Generator
) -> None:
    head, starts = pack_header({p.source: (dtype, p.shape) for p in places}, {"format": "pt"})
    with OutputFile(path) as output:
        output.write_at(0, head)
        for place in places:
            output.write_at(starts[place.source], _random(place, dtype, rng))


def _random(place: TensorPlacement, dtype: str, rng: np.random.Generator) -> bytes:
    """Normal values with the spread of a trained matrix; norms near their usual 1 (or 0)."""
    spread = 0.02 if len(place.shape) == 2 else 0.1
    values = rng.standard_normal(place.shape, np.float32) * np.float32(spread)
    if len(place.shape) == 1 and not place.shift and "norm" in place.source:
        values += 1
    if dtype == "F32":
        return values.tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # bf16 by truncation
