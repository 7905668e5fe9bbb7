"""Checkpoints converted in tests: write one as GGUF, read it back, change its documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tiny_checkpoint import put_json

from converters import hf_to_gguf
from converters.gguf_container import Metadata, read_metadata
from converters.gguf_output import write_model
from converters.quantizer import How
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama.type_plan import TypeRequest

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """The tensors as gguf-py reads them, independent of our reader; shapes are outermost first."""
    reader = gguf.GGUFReader(path)
    return {
        t.name: np.asarray(t.data, np.float32).reshape(tuple(reversed(t.shape.tolist())))
        for t in reader.tensors
    }


def write(directory: Path, path: Path, file_type: str = "F32", **request: Any) -> Metadata:
    metadata, tensors = hf_to_gguf.load(directory)
    write_model(path, metadata, tensors, TypeRequest(file_type, **request), How(threads=2))
    return read_metadata(path)


def contents(path: Path) -> dict[str, tuple[str, bytes]]:
    file, data = read_gguf(path), path.read_bytes()
    return {t.name: (t.type, data[file.data_start + t.offset :][: t.n_bytes]) for t in file.tensors}


def edit(path: Path, **changes: Any) -> None:
    put_json(path, {**json.loads(path.read_text()), **changes})
