"""Weights that stay packed: a matrix is unpacked a tile at a time, used, and forgotten.

Why it exists: the weights of a 1B model take 1 GB packed and 4 GB as float32; a board has 4 GB in
all. Flows in: a checked GGUF file, mapped. Flows out: `PackedMatrix`, which multiplies from either
side, and small vectors. Unpacking once per step and multiplying with BLAS is 7 to 45 times faster
than ggml's own backward, which unpacks once per token (measured, shared/anchors/lora.md 4.2). Not
here: which products are needed (decoder.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import ModelFormatError
from edge_agent.gguf_file import GgufFile, TensorInfo, read_gguf
from edge_agent.llama import ggml

Array = NDArray[Any]
TILE_BYTES = 4 << 20
"""Of one unpacked tile: small beside the activations, large enough for BLAS to run at full rate."""


@dataclass
class TileBuffer:
    """The one place where tiles are unpacked; grown to the widest row."""

    values: NDArray[np.float32]

    def take(self, n_elements: int) -> NDArray[np.float32]:
        if self.values.size < n_elements:
            self.values = np.empty(n_elements, np.float32)
        return self.values[:n_elements]


class PackedMatrix:
    """W (n_out, n_in) in the packed rows of a file. `dtype` is that of the products."""

    def __init__(self, name: str, type_name: str, rows: NDArray[np.uint8], n_in: int,
                 buffer: TileBuffer, dtype: Any = np.float32) -> None:  # fmt: skip
        self.name = name
        self.type = type_name
        self.n_in = n_in
        self.n_out = len(rows)
        self._rows = rows
        self._buffer = buffer
        self._dtype = dtype
        self._whole: Array | None = None

    @property
    def unpacked_bytes(self) -> int:
        return self.n_out * self.n_in * 4

    def keep(self) -> None:
        """Unpack the whole matrix once and keep it, when the memory plan allows."""
        self._whole = np.empty((self.n_out, self.n_in), np.float32)
        ggml.dequantize(self.type, self._rows, self._whole)
        self._whole = self._whole.astype(self._dtype, copy=False)

    def tiles(self) -> Iterator[tuple[slice, Array]]:
        """(rows, W[rows]) one after the other; a tile is valid until the next."""
        if self._whole is not None:
            yield slice(0, self.n_out), self._whole
            return
        step = max(1, TILE_BYTES // (4 * self.n_in))
        for first in range(0, self.n_out, step):
            rows = slice(first, min(first + step, self.n_out))
            packed = self._rows[rows]
            tile = self._buffer.take(len(packed) * self.n_in).reshape(len(packed), self.n_in)
            ggml.dequantize(self.type, packed, tile)
            yield rows, tile.astype(self._dtype, copy=False)

    def forward(self, x: Array) -> Array:
        """x (T, n_in) -> x W^T (T, n_out)."""
        out = np.empty((len(x), self.n_out), self._dtype)
        for rows, tile in self.tiles():
            out[:, rows] = x @ tile.T
        return out

    def backward(self, dy: Array) -> Array:
        """dy (T, n_out) -> dy W (T, n_in), the gradient of x in x W^T."""
        out = np.zeros((len(dy), self.n_in), self._dtype)
        for rows, tile in self.tiles():
            out += dy[:, rows] @ tile
        return out

    def rows(self, numbers: NDArray[np.int64]) -> Array:
        """Single rows, unpacked: the embeddings of token ids. (n, n_in)."""
        packed = np.ascontiguousarray(self._rows[numbers])
        out = np.empty((len(numbers), self.n_in), np.float32)
        ggml.dequantize(self.type, packed, out)
        return out.astype(self._dtype, copy=False)


class PackedWeights:
    """Every tensor of a model file by name, mapped."""

    def __init__(self, path: Path, dtype: Any = np.float32) -> None:
        """Raises ModelFormatError."""
        self.gguf: GgufFile = read_gguf(path)
        self._dtype = dtype
        self._tensors = {tensor.name: tensor for tensor in self.gguf.tensors}
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._buffer = TileBuffer(np.empty(TILE_BYTES // 4, np.float32))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def matrix(self, name: str) -> PackedMatrix:
        tensor = self._tensor(name)
        row = ggml.row_bytes(tensor.type, tensor.shape[0])
        rows = self._data(tensor).reshape(-1, row)
        return PackedMatrix(name, tensor.type, rows, tensor.shape[0], self._buffer, self._dtype)

    def vector(self, name: str) -> Array:
        """A norm or a bias, unpacked."""
        tensor = self._tensor(name)
        out = np.empty(tensor.n_elements, np.float32)
        ggml.dequantize(tensor.type, self._data(tensor), out)
        return out.astype(self._dtype, copy=False)

    def _data(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        start = self.gguf.data_start + tensor.offset
        return self._bytes[start : start + tensor.n_bytes]

    def _tensor(self, name: str) -> TensorInfo:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFormatError(
                f"cannot train on {self.gguf.path}",
                f"the tensor {name} is missing",
                "convert or pull the model again",
            )
        return tensor
