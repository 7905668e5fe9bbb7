"""Importance matrices as files: the format that llama-imatrix writes and llama-quantize reads.

Flows in: an Imatrix, or a file. Flows out: the other of the two. Layout: GGUF with general.type
"imatrix", and for each weight the tensors `<name>.in_sum2` (sums of squared activations over the
tokens) and `<name>.counts` (llama.cpp, tools/imatrix). Not here: computing one (imatrix.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.gguf_arrays import read_arrays
from converters.gguf_container import Metadata, TensorSpec, pack_head
from converters.output_file import OutputFile
from converters.rows import F32
from edge_agent.errors import ConversionError

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """`sums` and `counts` are keyed by weight name; the importance of a column is sum / count."""

    sums: Mapping[str, F32]
    counts: Mapping[str, float]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int

    def importance(self) -> dict[str, F32]:
        """The form that ggml's quantizer takes: float32 (n_columns,); 1 for a weight that saw no
        token."""
        return {
            name: sums / np.float32(self.counts[name]) if self.counts[name] else np.ones_like(sums)
            for name, sums in self.sums.items()
        }

    def keys(self, path: Path) -> Metadata:
        """The keys that llama-quantize puts in the quantized file about the matrix in `path`."""
        keys = Metadata()
        keys.put("string", "quantize.imatrix.file", str(path)[:127])
        dataset = self.datasets[0][:127] if self.datasets else None
        keys.put("string", "quantize.imatrix.dataset", dataset)
        keys.put("u32", "quantize.imatrix.entries_count", len(self.sums))
        keys.put("u32", "quantize.imatrix.chunks_count", self.chunk_count or None)
        return keys


def read_imatrix(path: Path) -> Imatrix:
    """Read a file. Raises ConversionError when it is no importance matrix, or holds anything but
    finite numbers from 0 on."""
    metadata, arrays = read_arrays(path, _refusal)
    if metadata.get_value("general.type") != "imatrix":
        raise _refusal(path, f"general.type is {metadata.get_value('general.type')!r}")
    names = [name.removesuffix(SUMS) for name in arrays if name.endswith(SUMS)]
    for name in names:
        if name + COUNTS not in arrays:
            raise _refusal(path, f"the entry {name} has no counts")
        for kind in (SUMS, COUNTS):
            values = arrays[name + kind]
            if not (np.isfinite(values).all() and (values >= 0).all() and values.size):
                why = f"{name}{kind} holds NaN, infinity or a negative number"
                raise _refusal(path, f"{why}; squares have none, and ggml would end this process")
    return Imatrix(
        {name: arrays[name + SUMS].reshape(-1) for name in names},
        {name: float(arrays[name + COUNTS].flat[0]) for name in names},
        tuple(metadata.get_value("imatrix.datasets", ())),
        int(metadata.get_value("imatrix.chunk_count", 0)),
        int(metadata.get_value("imatrix.chunk_size", 0)),
    )


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write a complete file or none. Raises ConversionError."""
    metadata = Metadata()
    metadata.put("string", "general.type", "imatrix")
    metadata.put_array("string", "imatrix.datasets", list(imatrix.datasets))
    metadata.put("u32", "imatrix.chunk_count", imatrix.chunk_count)
    metadata.put("u32", "imatrix.chunk_size", imatrix.chunk_size)
    specs: list[TensorSpec] = []
    data: dict[str, F32] = {}
    for name in sorted(imatrix.sums):
        sums = np.ascontiguousarray(imatrix.sums[name], np.float32)
        counts = np.array([imatrix.counts[name]], np.float32)
        specs.append(TensorSpec(name + SUMS, "F32", (1, sums.size), sums.nbytes))
        specs.append(TensorSpec(name + COUNTS, "F32", (1, 1), counts.nbytes))
        data |= {name + SUMS: sums, name + COUNTS: counts}
    head, starts = pack_head(metadata, specs)
    with OutputFile(path) as output:
        output.write_at(0, head)
        for name, array in data.items():
            output.write_at(starts[name], array.tobytes())


def _refusal(path: Path, why: str) -> ConversionError:
    return ConversionError(
        f"cannot use the importance matrix {path}",
        why,
        "make one with `edge-convert imatrix` or llama-imatrix (GGUF form, not .dat)",
    )
