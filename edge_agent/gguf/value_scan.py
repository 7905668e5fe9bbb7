"""Looks at every number of a tensor without NumPy: NaN, infinity, or too large to compute with.

Why it exists: llama.cpp loads an adapter that holds a NaN, and from then on every answer is broken.
The front process checks adapters too and must not load NumPy, and a Python loop over single numbers
would take seconds, so a whole block is tested with a few operations on one long integer. Flows in:
an open file and a tensor of little-endian F32 or F16. Flows out: whether a value differs from 0, or
Malformed. Not here: names and shapes (adapter_file.py).
"""

from __future__ import annotations

import math
import struct
from typing import BinaryIO

from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.header import TensorInfo

MAX_EXPONENT = 16
"""Every accepted value is below 2^16 = 65,536, the range of half precision; larger weights make the
hidden states infinite."""
_BLOCK_BYTES = 1 << 18


def check_values(stream: BinaryIO, data_start: int, tensor: TensorInfo) -> bool:
    """Look at all values of one F32 or F16 tensor. Returns False when all values are 0.

    Raises Malformed, which names the first value that is NaN, infinite or too large, and OSError
    when the disk fails.
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
    """Whether a value of `block` is NaN, infinite, or has a magnitude of 2^MAX_EXPONENT or more.

    The block is read as one long integer whose lanes of 32 bits (F16: 16 bits) are the values. A
    mask keeps only the exponent of each lane. Then one addition adds the same constant to each
    lane; the constant is chosen so that the sum reaches the lane's top bit exactly when the
    exponent is too high. NaN and infinity have the highest exponent there is.

    >>> has_large(struct.pack("<2f", 1.0, 65535.0), "F32")
    False
    >>> has_large(struct.pack("<2f", 1.0, math.nan), "F32")
    True
    """
    bits, mantissa, bias, top = (32, 23, 127, 255) if type_name == "F32" else (16, 10, 15, 31)
    ones = _ones(len(block) * 8 // bits, bits)
    exponents = int.from_bytes(block, "little") & ((top << mantissa) * ones)
    lift = (1 << (bits - 1)) - (min(bias + MAX_EXPONENT, top) << mantissa)
    return (exponents + lift * ones) & (ones << (bits - 1)) != 0


def _ones(n_lanes: int, bits: int) -> int:
    """An integer with the value 1 in each of `n_lanes` lanes of `bits` bits."""
    return int.from_bytes((1).to_bytes(bits // 8, "little") * n_lanes, "little")


def _worst(block: bytes, type_name: str) -> str:
    """The first value that is too large, in words. Slow, so it is called for a refusal only."""
    form, size = ("f", 4) if type_name == "F32" else ("e", 2)
    values = struct.unpack(f"<{len(block) // size}{form}", block)
    found = next(value for value in values if not abs(value) < 1 << MAX_EXPONENT)
    if math.isnan(found):
        return "NaN"
    return "an infinite value" if math.isinf(found) else f"{found:g}, which is too large"
