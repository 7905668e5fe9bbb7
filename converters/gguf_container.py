"""GGUF's metadata and tensor table, read completely and written.

Why it exists: edge_agent/gguf/model_file.py checks untrusted files and keeps only what a device
needs, while converting needs every key with its exact type, the tokens included. gguf-py packs a
vocabulary element by element; here an array is packed at once. Flows in: a file that read_gguf has
accepted, or a Metadata. Flows out: a Metadata, or the bytes before the tensor data. Layout:
ggml/docs/gguf.md, version 3. Not here: tensor data (gguf_output.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edge_agent.gguf.header import TYPE_NAMES
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama.ggml import TYPE_IDS

ALIGNMENT = 32
"""Bytes; the value that gguf.md gives general.alignment when a file lacks it."""

_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}
_FORMATS = {
    **{"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f"},
    **{"bool": "?", "u64": "Q", "i64": "q", "f64": "d"},
}


@dataclass(frozen=True)
class Value:
    """One value with its GGUF type (u32, f32, string, ...); for an array, `type` is its elements'
    type."""

    type: str
    value: Any
    is_array: bool = False


class Metadata(dict[str, Value]):
    """Keys in file order, with typed setters. Setting None does nothing."""

    def put(self, type_name: str, key: str, value: Any) -> None:
        """Set `key`, unless the value is None."""
        if value is not None:
            self[key] = Value(type_name, value)

    def put_array(self, type_name: str, key: str, values: Sequence[Any] | None) -> None:
        """Set `key`, unless the array is empty or None: llama.cpp's own writer refuses empty
        arrays."""
        if values:
            self[key] = Value(type_name, values, is_array=True)

    def get_value(self, key: str, default: Any = None) -> Any:
        """The plain value of a key."""
        found = self.get(key)
        return default if found is None else found.value


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file to be written. `shape` is outermost first, as in NumPy."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int


def read_metadata(path: Path) -> Metadata:
    """All keys of a model file. Raises ModelFormatError when the file is broken or hostile."""
    read_gguf(path)
    with path.open("rb") as stream:
        return read_pairs(stream)


def read_pairs(stream: BinaryIO) -> Metadata:
    """The key-value section of a checked file. Reads from the start of the file."""
    stream.seek(4 + 4 + 8)
    (n_keys,) = struct.unpack("<Q", stream.read(8))
    metadata = Metadata()
    for _ in range(n_keys):
        key = _read_string(stream).decode()
        type_name = TYPE_NAMES[_read(stream, "I")]
        if type_name == "array":
            element, count = TYPE_NAMES[_read(stream, "I")], _read(stream, "Q")
            metadata[key] = Value(element, _read_array(stream, element, count), is_array=True)
        elif type_name == "string":
            metadata[key] = Value("string", _read_string(stream).decode("utf-8", "replace"))
        else:
            metadata[key] = Value(type_name, _read(stream, _FORMATS[type_name]))
    return metadata


def _read(stream: BinaryIO, form: str) -> Any:
    return struct.unpack("<" + form, stream.read(struct.calcsize("<" + form)))[0]


def _read_string(stream: BinaryIO) -> bytes:
    return stream.read(_read(stream, "Q"))


def _read_array(stream: BinaryIO, element: str, count: int) -> list[Any]:
    if element == "string":
        return [text.decode("utf-8", "surrogateescape") for text in _read_strings(stream, count)]
    form = f"<{count}{_FORMATS[element]}"
    return list(struct.unpack(form, stream.read(struct.calcsize(form))))


def _read_strings(stream: BinaryIO, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield stream.read(int.from_bytes(stream.read(8), "little"))


def pack_head(metadata: Metadata, tensors: Sequence[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The padded bytes before the tensor data, and the offset of each tensor in the file."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _pack(value)]
    offset, starts = 0, {}
    for tensor in tensors:
        shape = tuple(reversed(tensor.shape))
        parts += [_string(tensor.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        parts.append(struct.pack("<IQ", TYPE_IDS[tensor.type], offset))
        starts[tensor.name] = offset
        offset = padded(offset + tensor.n_bytes)
    head = b"".join(parts)
    head += bytes(padded(len(head)) - len(head))
    return head, {name: len(head) + at for name, at in starts.items()}


def padded(n_bytes: int) -> int:
    """`n_bytes` rounded up to the alignment of GGUF data.

    >>> padded(33)
    64
    """
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _pack(value: Value) -> bytes:
    number = _NUMBERS[value.type]
    if value.is_array:
        head = struct.pack("<IIQ", _NUMBERS["array"], number, len(value.value))
        if value.type == "string":
            return head + b"".join(map(_string, value.value))
        return head + struct.pack(f"<{len(value.value)}{_FORMATS[value.type]}", *value.value)
    if value.type == "string":
        return struct.pack("<I", number) + _string(value.value)
    return struct.pack("<I" + _FORMATS[value.type], number, value.value)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return len(raw).to_bytes(8, "little") + raw
