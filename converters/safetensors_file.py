"""safetensors files: a bounded reader that maps them, and a writer that streams.

Why it exists: the NumPy side of the `safetensors` package has no bfloat16, and its torch side needs
torch. Flows in: a path. Flows out: StoredTensors whose bytes stay on the disk until they are read.
Nothing in the file is trusted: sizes, offsets and names are checked before use. Layout: 8 bytes of
little-endian length, a JSON header, the data (https://github.com/huggingface/safetensors#format).
Not here: what the tensors mean (families/).
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import ConversionError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_DIMS = 8
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1},
    **{"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies. `shape` is outermost first, `offset` counts from the start of the
    file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file. Raises ConversionError that names the file and the fault."""
    try:
        with path.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise broken(path, f"its header claims {length} bytes, over {MAX_HEADER_BYTES}")
            if 8 + length > file_bytes:
                raise broken(path, f"its header of {length} bytes is longer than the file")
            document = json.loads(stream.read(length))
    except OSError as error:
        raise broken(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError):
        raise broken(path, "its header is not JSON") from None
    if not isinstance(document, dict):
        raise broken(path, "its header is not a JSON object")
    document.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, 8 + length) for name, entry in document.items()}
    _check_data(path, tensors.values(), 8 + length, file_bytes)
    return tensors


def _entry(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if dtype not in ITEM_BYTES:
        raise broken(path, f"tensor {name} has the unknown type {dtype!r}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _sizes(shape) or len(shape) > MAX_DIMS or not _sizes(offsets) or len(offsets) != 2:
        raise broken(path, f"tensor {name} has a broken shape or place: {shape}, {offsets}")
    tensor = StoredTensor(name, dtype, tuple(shape), path, data_start + offsets[0])
    if offsets[1] - offsets[0] != tensor.n_bytes:
        raise broken(
            path,
            f"tensor {name} of shape {list(shape)} takes {tensor.n_bytes} bytes,"
            f" its place has {offsets[1] - offsets[0]}",
        )
    return tensor


def _sizes(value: Any) -> bool:
    """Whether this is a list of whole numbers that C could hold."""
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 48
        for size in value
    )


def _check_data(
    path: Path, tensors: Iterable[StoredTensor], data_start: int, file_bytes: int
) -> None:
    """Raise ConversionError unless the tensors fill the rest of the file without gap or overlap."""
    expected = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes)):
        if tensor.offset != expected:
            raise broken(path, f"tensor {tensor.name} overlaps another one or leaves a gap")
        expected += tensor.n_bytes
    if expected != file_bytes:
        what = "ends early: it was cut" if expected > file_bytes else "has bytes behind the last"
        raise broken(path, f"the file {what} ({file_bytes} bytes, the header says {expected})")


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, which the system reads when they are used. Raises ConversionError."""
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise broken(path, str(error)) from None
    return np.frombuffer(mapped, np.uint8)


def broken(path: Path, why: str) -> ConversionError:
    """The error for a file that cannot be read."""
    return ConversionError(
        f"cannot read {path}", why, "fetch the checkpoint again, or save it again as safetensors"
    )


def pack_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data of a file with these (dtype, shape) tensors, and each tensor's
    offset."""
    document: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset, starts = 0, {}
    for name, (dtype, shape) in tensors.items():
        end = offset + prod(shape) * ITEM_BYTES[dtype]
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        starts[name], offset = offset, end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # align the data
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {n: start + at for n, at in starts.items()}
