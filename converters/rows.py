"""Weights as rows of float32, independent of where they are stored.

Why it exists: quantizing, merging, writing a checkpoint and comparing all read weights a few rows
at a time, so that no tensor has to fit in memory as float32. Flows in: a safetensors tensor, a GGUF
tensor, or an array. Flows out: a Rows, whose `read` fills a buffer and may be called from several
threads. Not here: where the rows go (quantizer.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from converters.safetensors_file import ITEM_BYTES, StoredTensor
from edge_agent.errors import ConversionError
from edge_agent.gguf.header import TensorInfo
from edge_agent.llama import ggml

F32 = NDArray[np.float32]
FLOAT_TYPES = {"F32", "F16", "BF16"}


class Rows(Protocol):
    """A matrix of float32; a vector is a matrix of one row."""

    @property
    def name(self) -> str: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_columns(self) -> int: ...
    def read(self, first: int, out: F32) -> None:
        """Fill `out` (n, n_columns) with the rows from `first` on. Raises ConversionError."""


@dataclass(frozen=True)
class PackedRows:
    """Rows of any ggml type in mapped bytes (n_rows, bytes per row)."""

    name: str
    type: str
    data: NDArray[np.uint8]
    n_columns: int
    order: NDArray[np.int64] | None = None
    """Row i of this matrix is row order[i] of `data`; None: row i."""
    shift: float = 0.0

    @property
    def n_rows(self) -> int:
        return len(self.data)

    def read(self, first: int, out: F32) -> None:
        rows = slice(first, first + len(out))
        packed = self.data[rows] if self.order is None else self.data[self.order[rows]]
        ggml.dequantize(self.type, packed, out)
        if self.shift:
            out += np.float32(self.shift)
        check_finite(self.name, out)


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array in memory (n_rows, n_columns), for small tensors that are computed."""

    name: str
    array: F32

    @property
    def n_rows(self) -> int:
        return len(self.array)

    @property
    def n_columns(self) -> int:
        return int(self.array.shape[1])

    def read(self, first: int, out: F32) -> None:
        out[:] = self.array[first : first + len(out)]


@dataclass(frozen=True)
class SumRows:
    """base + scale * (b @ a), the weights of a merged LoRA adapter, a few rows at a time.

    `a` is (r, n_columns), `b` (n_rows, r), both float32; the sum is formed in float32.
    """

    base: Rows
    a: F32
    b: F32
    scale: float

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def n_rows(self) -> int:
        return self.base.n_rows

    @property
    def n_columns(self) -> int:
        return self.base.n_columns

    def read(self, first: int, out: F32) -> None:
        self.base.read(first, out)
        out += (self.b[first : first + len(out)] * np.float32(self.scale)) @ self.a
        check_finite(self.name, out)


def check_finite(name: str, values: F32) -> None:
    """Raise ConversionError that names the tensor when it contains NaN or infinity.

    A sum is not finite whenever an element is not, and computing it takes a tenth of the time of
    testing each element. A sum may overflow though, so then each element is tested.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
    if np.isfinite(total) or bool(np.isfinite(values).all()):
        return
    raise ConversionError(
        f"the tensor {name} holds NaN or infinity",
        "such a model answers nothing, or nonsense",
        "train again with a lower learning rate, or take an earlier checkpoint",
    )


def stored_rows(tensor: StoredTensor, mapped: NDArray[np.uint8]) -> PackedRows:
    """Rows of a safetensors tensor in its mapped file. Raises ConversionError for integer types."""
    if tensor.dtype not in FLOAT_TYPES:
        raise ConversionError(
            f"the tensor {tensor.name} has the type {tensor.dtype}",
            "only F32, F16 and BF16 weights can be converted",
            "load the model in transformers with dtype=torch.bfloat16 and save it again",
        )
    n_columns = tensor.shape[-1] if tensor.shape else 1
    row = n_columns * ITEM_BYTES[tensor.dtype]
    data = mapped[tensor.offset : tensor.offset + tensor.n_bytes].reshape(-1, row)
    return PackedRows(tensor.name, tensor.dtype, data, n_columns)


def gguf_rows(tensor: TensorInfo, mapped: NDArray[np.uint8], data_start: int) -> PackedRows:
    """Rows of a tensor of a GGUF file in its mapped bytes."""
    start = data_start + tensor.offset
    data = mapped[start : start + tensor.n_bytes]
    row = ggml.row_bytes(tensor.type, tensor.shape[0])
    return PackedRows(tensor.name, tensor.type, data.reshape(-1, row), tensor.shape[0])


def rotary_order(n_rows: int, n_heads: int, *, to_gguf: bool) -> NDArray[np.int64]:
    """For each row of q or k in the target format, its row in the source format.

    In a head of a checkpoint the two halves that are rotated together follow each other; llama.cpp
    has their elements in turn.

    >>> rotary_order(4, 1, to_gguf=True).tolist()
    [0, 2, 1, 3]
    """
    half = n_rows // n_heads // 2
    shape = (n_heads, 2, half) if to_gguf else (n_heads, half, 2)
    return np.arange(n_rows).reshape(shape).swapaxes(1, 2).reshape(-1)


def reordered(rows: PackedRows, n_heads: int, shift: float, *, to_gguf: bool) -> PackedRows:
    """The rows with the order and the shift of a TensorPlacement, or the inverse order.

    A vector (a bias) is one row; its elements are reordered at once.
    """
    if not n_heads:
        return replace(rows, shift=shift)
    if rows.n_rows > 1:
        order = rotary_order(rows.n_rows, n_heads, to_gguf=to_gguf)
        return replace(rows, order=order, shift=shift)
    order = rotary_order(rows.n_columns, n_heads, to_gguf=to_gguf)
    elements = rows.data.reshape(rows.n_columns, -1)[order]
    return replace(rows, data=elements.reshape(1, -1), shift=shift)
