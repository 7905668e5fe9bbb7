"""Writes a LoRA adapter as a GGUF file that stock llama.cpp loads.

Why it exists: an adapter is of use only in the format that the serving engine reads. Flows in: the
trained pairs of matrices, and the facts about the base that the file states. Flows out: a durable
file and its SHA-256. Format: llama.cpp's llama-adapter.cpp and gguf.h. Not here: reading and
checking an adapter (gguf/adapter_file.py).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import atomic_file
from edge_agent.adapt.trainer.decoder.lora import LoraWeight
from edge_agent.gguf.adapter_file import (
    BASE_QUANTIZATION_KEY,
    BASE_SHA256_KEY,
    LORA_A,
    LORA_B,
    NAME_KEY,
    SCORES_KEY,
    SETTINGS_KEY,
    TEMPLATE_KEY,
    TOKENIZER_KEY,
)
from edge_agent.gguf.base_identity import BaseIdentity

_ALIGNMENT = 32
_F32_KIND, _STRING_KIND = 6, 8
"""GGUF's numbers for value types (gguf.h); the tensor type F32 is 0."""


@dataclass(frozen=True)
class AdapterHeader:
    """The metadata of an adapter file. `settings` and `scores` are written as JSON."""

    name: str
    architecture: str
    base: BaseIdentity
    settings: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None


def write_adapter(path: Path, loras: Mapping[str, LoraWeight], header: AdapterHeader) -> str:
    """Write the adapter with float32 matrices. Returns the file's SHA-256 in hexadecimal.

    The file is durable when this returns. It has one adapter.lora.alpha, and llama.cpp scales each
    pair by alpha / r. The alpha written is scale * r of the first weight, so that rsLoRA's scale is
    kept; where another weight has another scale * r, its B is multiplied by the quotient. Raises
    OSError when the disk is full or fails; an earlier file at `path` then remains.

        sha256 = write_adapter(path, loras, AdapterHeader("mine", "gemma3", identity))
    """
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for part in _parts(loras, header):
            digest.update(part)
            yield part

    atomic_file.write_parts(path, hashed())
    return digest.hexdigest()


def _parts(loras: Mapping[str, LoraWeight], header: AdapterHeader) -> Iterator[bytes]:
    names = sorted(loras)
    first = loras[names[0]]
    alpha = first.scale * len(first.a)
    shapes = {}
    for name in names:
        (r, n_in), n_out = loras[name].a.shape, len(loras[name].b)
        shapes[name + LORA_A], shapes[name + LORA_B] = (n_in, r), (r, n_out)
    yield _head(_metadata(header, alpha), shapes)
    for name in names:
        lora = loras[name]
        factor = lora.scale * len(lora.a) / alpha
        yield _padded(lora.a.astype("<f4").tobytes())
        b = lora.b if abs(factor - 1) < 1e-6 else lora.b * factor
        yield _padded(b.astype("<f4").tobytes())


def _metadata(header: AdapterHeader, alpha: float) -> dict[str, str | float]:
    """The keys in the order that `edge-convert lora` uses, then the keys of this project."""
    found: dict[str, str | float | None] = {
        "general.architecture": header.architecture,
        "general.type": "adapter",
        "general.name": header.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
        BASE_SHA256_KEY: header.base.sha256,
        BASE_QUANTIZATION_KEY: header.base.quantization,
        TOKENIZER_KEY: header.base.tokenizer_sha256,
        TEMPLATE_KEY: header.base.template_sha256,
        NAME_KEY: header.name,
        SETTINGS_KEY: _json(header.settings),
        SCORES_KEY: _json(header.scores),
    }
    return {key: value for key, value in found.items() if value is not None}


def _json(document: dict[str, Any] | None) -> str | None:
    return None if document is None else json.dumps(document, sort_keys=True, allow_nan=False)


def _head(metadata: Mapping[str, str | float], shapes: Mapping[str, tuple[int, int]]) -> bytes:
    """The file's bytes before the tensor data. Shapes are innermost first."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(shapes), len(metadata))]
    for key, value in metadata.items():
        parts.append(_string(key))
        if isinstance(value, str):
            parts += [struct.pack("<I", _STRING_KIND), _string(value)]
        else:
            parts.append(struct.pack("<If", _F32_KIND, value))
    offset = 0
    for name, (inner, outer) in shapes.items():
        parts += [_string(name), struct.pack("<IQQIQ", 2, inner, outer, 0, offset)]
        offset = -(-(offset + 4 * inner * outer) // _ALIGNMENT) * _ALIGNMENT
    return _padded(b"".join(parts))


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
