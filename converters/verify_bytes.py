"""Whether the bytes of a quantized file are exactly those that ggml makes of its source.

Flows in: the source (a directory or a GGUF file of floats) and the file. Flows out: yes, no, or
None with the reason. Each tensor is quantized again, a slab at a time, into the type that it has in
the file. Not here: whether the types are well chosen.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from converters.gguf_output import SourceTensor
from converters.hf_to_gguf import load as load_directory
from converters.quantize import load as load_gguf
from converters.quantizer import SLAB_ELEMENTS
from converters.rows import FLOAT_TYPES, PackedRows
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama import ggml


def compare_bytes(a: Path, b: Path) -> tuple[bool | None, str | None]:
    """(whether every tensor of B is ggml_quantize_chunk of A's or None, reason or None)."""
    if b.is_dir():
        return None, "B is no GGUF file: it has no quantized bytes"
    metadata = read_gguf(b).metadata
    if "quantize.imatrix.file" in metadata:
        return None, "B was quantized with an importance matrix, which is not at hand"
    source = _source(a)
    if source is None:
        return None, "A is quantized itself: what B was made of is not at hand"
    wrong = []
    with ThreadPoolExecutor() as pool:
        for tensor, is_equal in pool.map(lambda t: (t, _is_equal(t, source)), load_gguf(b)[1]):
            if not is_equal:
                wrong.append(tensor.name)
    if wrong:
        return False, f"{len(wrong)} tensors differ, the first is {wrong[0]}"
    return True, None


def _source(path: Path) -> dict[str, SourceTensor] | None:
    """A's tensors by name; None when A is quantized."""
    tensors = (load_directory if path.is_dir() else load_gguf)(path)[1]
    found = {tensor.name: tensor for tensor in tensors}
    kinds = {t.rows.type for t in tensors if isinstance(t.rows, PackedRows)}
    return found if kinds <= FLOAT_TYPES else None


def _is_equal(tensor: SourceTensor, source: dict[str, SourceTensor]) -> bool:
    original, rows = source.get(tensor.name), tensor.rows
    assert isinstance(rows, PackedRows)
    if original is None or original.shape != tensor.shape:
        return False
    step = max(1, SLAB_ELEMENTS // rows.n_columns)
    for first in range(0, rows.n_rows, step):
        count = min(step, rows.n_rows - first)
        values = np.empty((count, rows.n_columns), np.float32)
        original.rows.read(first, values)
        packed = np.empty(count * ggml.row_bytes(rows.type, rows.n_columns), np.uint8)
        ggml.quantize(rows.type, values, packed)
        if not np.array_equal(packed, rows.data[first : first + count].reshape(-1)):
            return False
    return True
