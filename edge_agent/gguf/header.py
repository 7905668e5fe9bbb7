"""The structure of a GGUF file, read with a bound on every count, length, byte and second.

Why it exists: other readers trust the counts in a file and can be made to allocate without bound.
Flows in: a binary stream and its size. Flows out: a `Header` of plain values: key-value pairs (of a
large array only a summary), the tensor table, and the facts that a check of the vocabulary needs.
Format: docs/gguf.md of the ggml repository, versions 2 and 3, little-endian. Not here: which values
make llama.cpp abort (rules.py).
"""

from __future__ import annotations

import re
import struct
from array import array
from dataclasses import dataclass
from typing import BinaryIO

from edge_agent.gguf.cursor import Cursor, Malformed

Scalar = int | float | bool | str

MAX_KEYS = 512
MAX_TENSORS = 16_384
MAX_KEY_BYTES = 256
MAX_TENSOR_NAME_BYTES = 63
"""GGML_MAX_NAME - 1 (ggml.h)."""
MAX_DIMS = 4
MAX_STRING_BYTES = 1 << 20
MAX_TEXT_BYTES = 4 << 20
"""Limit on the bytes of all scalar strings together. Python may need 4 bytes for each."""
MAX_ELEMENTS = 1 << 20
MAX_VOCAB = 1 << 19
MAX_VOCAB_BYTES = 8 << 20
"""Limit on the text of all tokens. The text of Gemma's 262,144 tokens has 2 MB."""
KEPT_ELEMENTS = 512
"""Elements kept of an array of numbers: enough for any list with one entry per layer."""
KEPT_STRINGS, KEPT_STRING_BYTES = 8, 256

TOKENS_KEY = "tokenizer.ggml.tokens"
TOKEN_TYPES_KEY = "tokenizer.ggml.token_type"

_PRINTABLE = re.compile(rb"[\x21-\x7e]+")
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-F]{2})>")

# GGUF value types (gguf.h); 8 is a string and 9 an array.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_FORMATS[12] = "d"
_STRING, _ARRAY, _BOOL = 8, 9, 7
TYPE_NAMES = {
    **{0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool"},
    **{8: "string", 9: "array", 10: "u64", 11: "i64", 12: "f64"},
}

# Bytes and elements of one block of each tensor type that a model may use for its weights
# (ggml.h, ggml-common.h). The table leaves out integers, f64 and the activation types Q8_1 and
# Q8_K, because the CPU kernels abort for weights of these types.
BLOCKS: dict[int, tuple[str, int, int]] = {
    **{0: ("F32", 4, 1), 1: ("F16", 2, 1), 30: ("BF16", 2, 1)},
    **{2: ("Q4_0", 18, 32), 3: ("Q4_1", 20, 32), 6: ("Q5_0", 22, 32), 7: ("Q5_1", 24, 32)},
    **{8: ("Q8_0", 34, 32), 20: ("IQ4_NL", 18, 32), 39: ("MXFP4", 17, 32)},
    **{10: ("Q2_K", 84, 256), 11: ("Q3_K", 110, 256), 12: ("Q4_K", 144, 256)},
    **{13: ("Q5_K", 176, 256), 14: ("Q6_K", 210, 256)},
    **{16: ("IQ2_XXS", 66, 256), 17: ("IQ2_XS", 74, 256), 22: ("IQ2_S", 82, 256)},
    **{18: ("IQ3_XXS", 98, 256), 21: ("IQ3_S", 110, 256), 23: ("IQ4_XS", 136, 256)},
    **{19: ("IQ1_S", 50, 256), 29: ("IQ1_M", 56, 256)},
    **{34: ("TQ1_0", 54, 256), 35: ("TQ2_0", 66, 256)},
}


@dataclass(frozen=True)
class ArraySummary:
    """An array of the metadata: element type, length, and the first elements.

    `head` holds at most KEPT_ELEMENTS numbers or KEPT_STRINGS strings, and nothing for the arrays
    of tokens and of token types, which have their own fields in Header.
    """

    type: str
    length: int
    head: tuple[Scalar, ...]


Value = Scalar | ArraySummary


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table. `shape` is innermost first: (n_columns, n_rows) for a matrix.
    `offset` is in bytes from `Header.data_start`."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    n_elements: int
    n_bytes: int


@dataclass(frozen=True)
class VocabularyFacts:
    """What rules.py needs to know about the tokens; the tokens themselves are not kept."""

    size: int
    byte_token_ids: frozenset[int]
    """Ids of the tokens spelled <0x00> ... <0xFF> in upper case: llama.cpp looks up no other
    spelling."""


@dataclass(frozen=True)
class Header:
    """Everything that stands before the tensor data. `data_start` is an offset in the file."""

    version: int
    metadata: dict[str, Value]
    types: dict[str, str]
    """Type name of each key's value: a Python int does not say whether it was a u32."""
    tensors: tuple[TensorInfo, ...]
    vocabulary: VocabularyFacts | None
    token_types: array[int] | None
    data_start: int


def parse_header(stream: BinaryIO, file_bytes: int) -> Header:
    """Read the header of a GGUF file of `file_bytes` bytes from the start of `stream`.

    Raises only Malformed, and OSError when the disk fails. Memory stays below 64 MiB.

        with open_regular(path) as stream:
            header = parse_header(stream, os.fstat(stream.fileno()).st_size)
    """
    cursor = Cursor(stream, file_bytes)
    version, n_tensors, n_keys = _prologue(cursor)
    pairs = _Pairs(cursor)
    for _ in range(n_keys):
        pairs.read_one()
    alignment = _alignment(pairs)
    rows = [_tensor_row(cursor) for _ in range(n_tensors)]
    data_start = -(-cursor.position // alignment) * alignment
    _check_table(rows, alignment, file_bytes - data_start)
    return Header(
        version=version,
        metadata=pairs.metadata,
        types=pairs.types,
        tensors=tuple(rows),
        vocabulary=pairs.vocabulary,
        token_types=pairs.token_types,
        data_start=data_start,
    )


def _prologue(cursor: Cursor) -> tuple[int, int, int]:
    if cursor.take(4) != b"GGUF":
        raise Malformed("it does not begin with the letters GGUF")
    version = int(cursor.number("I"))
    if version not in (2, 3):
        raise Malformed(f"GGUF version {version} is not 2 or 3")
    n_tensors = cursor.unsigned("Q", MAX_TENSORS, "the number of tensors")
    return version, n_tensors, cursor.unsigned("Q", MAX_KEYS, "the number of metadata keys")


class _Pairs:
    """Collects the key-value section. Tokens are examined while they are read, and not kept."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self.metadata: dict[str, Value] = {}
        self.types: dict[str, str] = {}
        self.vocabulary: VocabularyFacts | None = None
        self.token_types: array[int] | None = None
        self._text_left = MAX_TEXT_BYTES

    def read_one(self) -> None:
        key = _name(self._cursor.string(MAX_KEY_BYTES, "a metadata key"), "a metadata key")
        if key in self.metadata:
            raise Malformed(f"the metadata key {key} occurs twice")
        kind = int(self._cursor.number("I"))
        if kind not in TYPE_NAMES:
            raise Malformed(f"{key} has the unknown type {kind}")
        self.types[key] = TYPE_NAMES[kind]
        self.metadata[key] = self._array(key) if kind == _ARRAY else self._scalar(key, kind)

    def _scalar(self, key: str, kind: int) -> Scalar:
        if kind == _STRING:
            raw = self._cursor.string(min(MAX_STRING_BYTES, self._text_left), key)
            self._text_left -= len(raw)
            return _text(raw)
        if kind == _BOOL:
            return bool(self._cursor.unsigned("B", 1, key))
        return self._cursor.number(_FORMATS[kind])

    def _array(self, key: str) -> ArraySummary:
        kind = int(self._cursor.number("I"))
        if kind == _ARRAY or kind not in TYPE_NAMES:
            raise Malformed(f"{key} is an array of the type {kind}, which llama.cpp does not read")
        count = self._cursor.unsigned("Q", MAX_ELEMENTS, f"the number of elements of {key}")
        head = self._strings(key, count) if kind == _STRING else self._numbers(key, kind, count)
        return ArraySummary(TYPE_NAMES[kind], count, head)

    def _strings(self, key: str, count: int) -> tuple[str, ...]:
        if key == TOKENS_KEY:
            self.vocabulary = _vocabulary(self._cursor, count)
            return ()
        kept: list[bytes] = []
        for batch in self._cursor.strings(count):
            kept = kept or batch[:KEPT_STRINGS]
        return tuple(_text(raw[:KEPT_STRING_BYTES]) for raw in kept)

    def _numbers(self, key: str, kind: int, count: int) -> tuple[Scalar, ...]:
        form = _FORMATS[kind].replace("?", "B")
        width = struct.calcsize(form)
        if key == TOKEN_TYPES_KEY and kind == 5 and count <= MAX_VOCAB:
            self.token_types = array("i", self._cursor.take(count * width))
            return ()
        kept = min(count, KEPT_ELEMENTS)
        head: tuple[Scalar, ...] = struct.unpack(f"<{kept}{form}", self._cursor.take(kept * width))
        self._cursor.skip((count - kept) * width)
        return head


def _vocabulary(cursor: Cursor, count: int) -> VocabularyFacts:
    """Read `count` tokens; refuse a vocabulary in which llama.cpp would see two equal tokens.

    llama.cpp cuts a token at a NUL byte and names an empty token [EMPTY_i], i being its id. Two
    equal tokens fail GGML_ASSERT(id_to_token.size() == token_to_id.size()), which ends the process.
    """
    if count > MAX_VOCAB:
        raise Malformed(f"the vocabulary has {count} tokens, at most {MAX_VOCAB} are accepted")
    seen: set[bytes] = set()
    byte_ids: list[int] = []
    n_bytes = 0
    for batch in cursor.strings(count):
        n_bytes += sum(map(len, batch))
        if n_bytes > MAX_VOCAB_BYTES:
            raise Malformed(f"the text of its vocabulary exceeds {MAX_VOCAB_BYTES} bytes")
        first = len(seen)
        tokens = _as_llama_cpp_sees(batch, first)
        seen.update(tokens)
        if len(seen) != first + len(tokens):
            raise Malformed(
                f"two tokens of the vocabulary are equal, one of them among the ids {first}"
                f" to {first + len(tokens) - 1}"
            )
        byte_ids += [
            first + at
            for at, token in enumerate(tokens)
            if len(token) == 6 and _BYTE_TOKEN.fullmatch(token)
        ]
    return VocabularyFacts(count, frozenset(byte_ids))


def _as_llama_cpp_sees(batch: list[bytes], first: int) -> list[bytes]:
    if b"" not in batch and b"\0" not in b"".join(batch):
        return batch
    cut = [token.split(b"\0", 1)[0] for token in batch]
    return [token or b"[EMPTY_%d]" % (first + at) for at, token in enumerate(cut)]


def _name(raw: bytes, what: str) -> str:
    # llama.cpp cuts names at a NUL byte, which can make two different names equal.
    if not _PRINTABLE.fullmatch(raw):
        raise Malformed(f"{what} is not printable ASCII: {raw[:40]!r}")
    return raw.decode("ascii")


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", errors="replace")


def _alignment(pairs: _Pairs) -> int:
    """general.alignment, at least 32: llama.cpp uses tensors where they lie in the mapped file and
    aborts when their data is not aligned to 32 bytes."""
    value = pairs.metadata.get("general.alignment", 32)
    if pairs.types.get("general.alignment", "u32") != "u32" or not isinstance(value, int):
        raise Malformed("general.alignment is not a u32")
    if not 32 <= value <= 1 << 20 or value & (value - 1):
        raise Malformed(f"general.alignment {value} is not a power of two from 32 to 1048576")
    return value


def _tensor_row(cursor: Cursor) -> TensorInfo:
    name = _name(cursor.string(MAX_TENSOR_NAME_BYTES, "a tensor name"), "a tensor name")
    n_dims = cursor.unsigned("I", MAX_DIMS, f"the number of dimensions of {name}")
    shape = tuple(int(cursor.number("Q")) for _ in range(n_dims))
    kind = int(cursor.number("I"))
    offset = int(cursor.number("Q"))
    if kind not in BLOCKS:
        raise Malformed(f"tensor {name} has the type {kind}, which is not one for weights")
    type_name, block_bytes, block_elements = BLOCKS[kind]
    n_elements = 1
    for size in shape:
        n_elements *= size
    # Python's integers cannot overflow; this bound keeps llama.cpp's 64-bit products in range.
    if not shape or not 1 <= n_elements < 1 << 46 or max(shape) >= 1 << 40:
        raise Malformed(f"tensor {name} has the impossible shape {list(shape)}")
    if shape[0] % block_elements:
        raise Malformed(
            f"tensor {name}: rows of {shape[0]} do not divide into {type_name} blocks"
            f" of {block_elements}"
        )
    n_bytes = n_elements // block_elements * block_bytes
    return TensorInfo(name, type_name, shape, offset, n_elements, n_bytes)


def _check_table(rows: list[TensorInfo], alignment: int, data_bytes: int) -> None:
    """Each tensor must start where its predecessor ends, padded to `alignment` (gguf.cpp demands
    this), and must end inside the file."""
    names: set[str] = set()
    expected = 0
    for row in rows:
        if row.name in names:
            raise Malformed(f"the tensor {row.name} occurs twice")
        names.add(row.name)
        if row.offset != expected:
            problem = "overlaps its predecessor" if row.offset < expected else "leaves a gap"
            raise Malformed(f"tensor {row.name} at offset {row.offset} {problem} ({expected})")
        if row.offset + row.n_bytes > data_bytes:
            raise Malformed(
                f"tensor {row.name} ends {row.offset + row.n_bytes - data_bytes} bytes behind"
                " the end of the file"
            )
        expected = -(-(row.offset + row.n_bytes) // alignment) * alignment
