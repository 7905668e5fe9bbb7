"""A GGUF file becomes another GGUF file with other tensor types.

Flows in: a model file. Flows out: metadata and tensors for gguf_output.py. Every key is kept;
weights go through float32 straight into the quantizer. Not here: checkpoints (hf_to_gguf.py).
"""

from __future__ import annotations

from pathlib import Path

from converters.gguf_container import Metadata, read_metadata
from converters.gguf_output import SourceTensor
from converters.rows import gguf_rows
from converters.safetensors_file import map_file
from edge_agent.gguf.model_file import read_gguf


def load(path: Path) -> tuple[Metadata, list[SourceTensor]]:
    """Metadata and tensors of a model file. Raises ModelFormatError."""
    gguf = read_gguf(path)
    mapped = map_file(path)
    tensors = [
        SourceTensor(
            tensor.name, tuple(reversed(tensor.shape)), gguf_rows(tensor, mapped, gguf.data_start)
        )
        for tensor in gguf.tensors
    ]
    return read_metadata(path), tensors
