"""ggml's row kernels: packed weights to float32 and float32 to packed weights.

Why it exists: quantized bytes must be those that llama.cpp writes and reads, so this module calls
the library that llama-cpp-python ships instead of implementing the formats again. Flows in: NumPy
arrays and a type name of BLOCKS (gguf/header.py). Flows out: NumPy arrays. Every call releases the
GIL, so threads may share the work. Not here: which tensor gets which type (type_plan.py), files.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.gguf.header import BLOCKS
from edge_agent.llama.binding import c_function

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

TYPE_IDS = {name: number for number, (name, _, _) in BLOCKS.items()}


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits (ggml.h). `_unpacker` compares its values with those in BLOCKS."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_elements", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("type_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


@cache
def _quantize_chunk() -> Any:
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    return c_function(
        "ggml_quantize_chunk",
        ctypes.c_size_t,
        *(ctypes.c_int, pointer, pointer, count, count, count, pointer),
    )


@cache
def _unpacker(type_name: str) -> Any:
    """ggml's function that unpacks a type to float32; None for a type that has none.

    Raises RuntimeError when the library describes the type differently from BLOCKS.
    """
    name, block_bytes, block_elements = BLOCKS[TYPE_IDS[type_name]]
    get = c_function("ggml_get_type_traits", ctypes.POINTER(_TypeTraits), ctypes.c_int)
    traits = get(TYPE_IDS[type_name]).contents
    seen = (traits.type_name.upper().decode(), traits.type_bytes, traits.block_elements)
    if seen != (name, block_bytes, block_elements):
        raise RuntimeError(
            f"this libggml describes type {type_name} as {seen}, expected"
            f" {(name, block_bytes, block_elements)}: install the llama-cpp-python of the lock"
        )
    return _TO_FLOAT(traits.to_float) if traits.to_float else None


def row_bytes(type_name: str, n_columns: int) -> int:
    """Bytes of one row of `n_columns` elements.

    Raises ValueError when `n_columns` is not a multiple of the type's block.

    >>> row_bytes("Q4_K", 256), row_bytes("F16", 3)
    (144, 6)
    """
    _, block_bytes, block_elements = BLOCKS[TYPE_IDS[type_name]]
    if n_columns % block_elements:
        raise ValueError(f"rows of {n_columns} do not divide into {type_name} blocks")
    return n_columns // block_elements * block_bytes


def requires_imatrix(type_name: str) -> bool:
    """Whether ggml refuses to quantize to this type without an importance matrix."""
    requires = c_function("ggml_quantize_requires_imatrix", ctypes.c_bool, ctypes.c_int)
    return bool(requires(TYPE_IDS[type_name]))


def dequantize(type_name: str, packed: Bytes, out: F32) -> None:
    """Unpack whole rows: `packed` (contiguous uint8) into `out` (contiguous float32, any shape).

    Every type of BLOCKS is accepted. Raises ValueError when `packed` does not have the bytes that
    `out.size` elements take, or when an array is not contiguous.
    """
    if not (packed.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError("both arrays must be contiguous")
    if packed.nbytes != row_bytes(type_name, out.size):
        raise ValueError(f"{packed.nbytes} bytes of {type_name} are not {out.size} elements")
    if type_name == "F32":
        out.reshape(-1).view(np.uint8)[:] = packed.reshape(-1)
        return
    _unpacker(type_name)(packed.ctypes.data, out.ctypes.data, out.size)


def quantize(type_name: str, rows: F32, out: Bytes, importance: F32 | None = None) -> None:
    """Pack `rows` (n, n_columns) into `out` (n * row_bytes bytes) with ggml_quantize_chunk.

    `importance` (n_columns) is the weight of each column's error: one entry of an importance
    matrix. Raises ValueError when the shapes do not agree or ggml writes another number of bytes.
    """
    n_rows, n_columns = rows.shape
    if not (rows.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError("both arrays must be contiguous")
    if out.nbytes != n_rows * row_bytes(type_name, n_columns):
        raise ValueError(f"{out.nbytes} bytes do not hold {n_rows} rows of {n_columns} {type_name}")
    if importance is not None and importance.shape != (n_columns,):
        raise ValueError(f"importance of shape {importance.shape} for rows of {n_columns}")
    if type_name == "F32":
        out[:] = rows.reshape(-1).view(np.uint8)
        return
    weights = None if importance is None else importance.ctypes.data
    written = _quantize_chunk()(
        TYPE_IDS[type_name], rows.ctypes.data, out.ctypes.data, 0, n_rows, n_columns, weights
    )
    if written != out.nbytes:
        raise ValueError(f"ggml wrote {written} bytes of {type_name} instead of {out.nbytes}")
