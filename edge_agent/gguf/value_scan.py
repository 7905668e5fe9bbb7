"""Looks at every number of a tensor without NumPy: NaN, infinity, or too large to compute with.

Why it exists: llama.cpp loads an adapter with a NaN in it and every answer is broken from then on.
The front checks adapters too, and must not load NumPy; one number after the other takes seconds.
Flows in: blocks of little-endian F32 or F16. Flows out: whether there is anything but zeros, or
Malformed. Leaf beside adapter_file.py.
"""

from __future__ import annotations

import math
import struct
from typing import BinaryIO

from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.header import TensorInfo

MAX_EXPONENT = 16
"""Every value stays below 2^16 = 65,536, as in half precision: more makes states infinite."""
_BLOCK_BYTES = 1 << 18


def check_values(stream: BinaryIO, data_start: int, tensor: TensorInfo) -> bool:
    """Look at all values of one F32 or F16 tensor; False when all are 0.

    Raises Malformed, which says what is wrong with the first bad one.
    """
    stream.seek(data_start + tensor.offset)
    left, is_filled = tensor.n_bytes, False
    while left:
        block = stream.read(min(left, _BLOCK_BYTES))
        if not block:
            raise Malformed("the file became shorter while it was read")
        left -= len(block)
        if has_large(block, tensor.type):
            raise Malformed(f"{tensor.name} holds {_worst(block, tensor.type)}")
        is_filled = is_filled or bool(block.strip(b"\0\x80"))  # 0x80: the sign of -0.0
    return is_filled


def has_large(block: bytes, type_name: str) -> bool:
    """Whether a value is NaN, infinite, or 2^MAX_EXPONENT or more.

    All at once: the block is one long integer in lanes of 32 (F16: 16) bits. Each lane keeps its
    exponent, and what is added lifts the first exponent that is too high to the lane's top bit.
    """
    bits, mantissa, bias, top = (32, 23, 127, 255) if type_name == "F32" else (16, 10, 15, 31)
    ones = _ones(len(block) * 8 // bits, bits)
    exponents = int.from_bytes(block, "little") & ((top << mantissa) * ones)
    lift = (1 << (bits - 1)) - (min(bias + MAX_EXPONENT, top) << mantissa)
    return (exponents + lift * ones) & (ones << (bits - 1)) != 0


def _ones(n_lanes: int, bits: int) -> int:
    """1 in each lane."""
    return int.from_bytes((1).to_bytes(bits // 8, "little") * n_lanes, "little")


def _worst(block: bytes, type_name: str) -> str:
    """Names the first value that is too large; slow, for the refusal only."""
    form, size = ("f", 4) if type_name == "F32" else ("e", 2)
    values = struct.unpack(f"<{len(block) // size}{form}", block)
    found = next(value for value in values if not abs(value) < 1 << MAX_EXPONENT)
    if math.isnan(found):
        return "NaN"
    return "an infinite value" if math.isinf(found) else f"{found:g}, which is too large"
