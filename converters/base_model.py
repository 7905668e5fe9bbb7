"""The base of an adapter: a checkpoint directory or a GGUF file, behind one interface.

Flows in: a path. Flows out: the family, the placement of each tensor, the weights as rows, and the
hashes that tie an adapter to this base. Not here: adapters (adapter.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from converters import gguf_to_hf, hf_to_gguf
from converters import quantize as gguf_file
from converters.checkpoint import open_checkpoint
from converters.families import family_of_config
from converters.families.family import Family, TensorPlacement
from converters.gguf_container import Metadata
from converters.gguf_output import SourceTensor
from edge_agent.gguf.model_file import read_gguf
from edge_agent.regular_file import sha256_of


@dataclass(frozen=True)
class BaseModel:
    """`placements` is keyed by GGUF name. `quantization` is F32 ... Q4_K_M for a file, None for a
    directory."""

    path: Path
    family: Family
    placements: Mapping[str, TensorPlacement]
    metadata: Metadata
    tensors: tuple[SourceTensor, ...]
    quantization: str | None

    @property
    def is_quantized(self) -> bool:
        """Whether the weights have lost precision against a float original."""
        return self.quantization not in (None, "F32", "F16", "BF16")

    def hashes(self) -> Metadata:
        """Keys that tie an adapter to this very model: SHA-256 of weights, tokenizer and template,
        in hex."""
        files = [self.path]
        if self.path.is_dir():
            stored = open_checkpoint(self.path).tensors.values()
            files = sorted({tensor.path for tensor in stored})
        keys = Metadata()
        keys.put("string", "edge_agent.base.sha256", sha256_of(*files))
        keys.put("string", "edge_agent.base.quantization", self.quantization)
        keys.put("string", "edge_agent.tokenizer.sha256", tokenizer_sha256(self.metadata))
        keys.put("string", "edge_agent.template.sha256", template_sha256(self.metadata))
        return keys


def open_base(path: Path) -> BaseModel:
    """Open a directory or a GGUF file. Raises ConversionError, ModelFormatError."""
    if path.is_dir():
        checkpoint = open_checkpoint(path)
        family = family_of_config(path, checkpoint.config)
        metadata, tensors = hf_to_gguf.load(path)
        places = list(family.placements(checkpoint.config, hf_to_gguf.n_vocab(checkpoint)))
        quantization = None
    else:
        model = gguf_to_hf.open_model(path)
        family, places = model.family, list(model.placements)
        metadata, tensors = gguf_file.load(path)
        quantization = read_gguf(path).quantization
    by_target = {place.target: place for place in places}
    return BaseModel(path, family, by_target, metadata, tuple(tensors), quantization)


def tokenizer_sha256(metadata: Metadata) -> str:
    """Hash of everything that decides about token ids; equal for a directory and the GGUF made of
    it."""
    keys = ("model", "pre", "tokens", "token_type", "scores", "merges")
    values: list[Any] = [metadata.get_value(f"tokenizer.ggml.{key}") for key in keys]
    return hashlib.sha256(msgspec.json.encode(values)).hexdigest()


def template_sha256(metadata: Metadata) -> str | None:
    """Hash of the chat template; None when there is none."""
    template = metadata.get_value("tokenizer.chat_template")
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()
