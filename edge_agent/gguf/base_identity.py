"""What ties an adapter to its base: hashes of the file, of its tokenizer and of its template.

Why it exists: llama.cpp loads an adapter onto any model of the same shape, and the answers are
nonsense when it is the wrong model. The hashes equal those that `edge-convert lora` writes into an
adapter, so both kinds of adapters can be compared with a base; here they are computed on the board
in one pass over the file's header. Flows in: a checked GgufFile and the file's SHA-256. Flows out:
`BaseIdentity`. Not here: comparing an adapter with its base (adapter_file.py).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import msgspec

from edge_agent.errors import ModelFormatError
from edge_agent.gguf.cursor import Cursor, Malformed
from edge_agent.gguf.header import MAX_KEY_BYTES, MAX_KEYS, MAX_TEXT_BYTES, TYPE_NAMES
from edge_agent.gguf.model_file import GgufFile

_TOKENIZER_KEYS = ("model", "pre", "tokens", "token_type", "scores", "merges")
"""The keys tokenizer.ggml.* that decide which token ids a text gets."""
_PREFIX = "tokenizer.ggml."
_FORMATS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f",
            "bool": "B", "u64": "Q", "i64": "q", "f64": "d"}  # fmt: skip


@dataclass(frozen=True)
class BaseIdentity:
    """SHA-256 values in hexadecimal. `quantization` is that of GgufFile, such as Q4_K_M."""

    sha256: str
    quantization: str
    tokenizer_sha256: str
    template_sha256: str | None


def identify_base(gguf: GgufFile, sha256: str) -> BaseIdentity:
    """The identity of the base file `gguf`, whose whole-file hash is `sha256`.

    Raises ModelFormatError when the tokenizer cannot be read.
    """
    template = gguf.chat_template
    return BaseIdentity(
        sha256,
        gguf.quantization,
        tokenizer_sha256(gguf),
        None if template is None else hashlib.sha256(template.encode()).hexdigest(),
    )


def tokenizer_sha256(gguf: GgufFile) -> str:
    """SHA-256 of a JSON list: the values of _TOKENIZER_KEYS in that order, null for a missing one.

    Raises ModelFormatError when the file cannot be read.
    """
    try:
        with gguf.path.open("rb") as stream:
            found = _tokenizer_values(Cursor(stream, gguf.file_bytes))
    except (Malformed, OSError, UnicodeError) as error:
        raise ModelFormatError(
            f"cannot read the tokenizer of {gguf.path}", str(error), "pull the model again"
        ) from None
    values = [found.get(_PREFIX + key, b"null") for key in _TOKENIZER_KEYS]
    return hashlib.sha256(b"[" + b",".join(values) + b"]").hexdigest()


def _tokenizer_values(cursor: Cursor) -> dict[str, bytes]:
    """The value of every key that starts with _PREFIX, as JSON text."""
    cursor.skip(4 + 4 + 8)
    found = {}
    for _ in range(cursor.unsigned("Q", MAX_KEYS, "the number of metadata keys")):
        key = cursor.string(MAX_KEY_BYTES, "a metadata key").decode()
        value = _value(cursor)
        if key.startswith(_PREFIX):
            found[key] = value
    return found


def _value(cursor: Cursor) -> bytes:
    kind = _kind(cursor)
    if kind == "string":
        raw = cursor.string(MAX_TEXT_BYTES, "a string")
        return msgspec.json.encode(raw.decode("utf-8", "replace"))
    if kind == "array":
        return _array(cursor)
    return msgspec.json.encode(cursor.number(_FORMATS[kind]))


def _array(cursor: Cursor) -> bytes:
    """The array as one JSON list, encoded 4096 elements at a time: a Python list of all tokens
    would take tens of MB."""
    kind, count = _kind(cursor), int(cursor.number("Q"))
    pieces = []
    if kind == "string":
        for batch in cursor.strings(count):
            texts = [text.decode("utf-8", "surrogateescape") for text in batch]
            pieces.append(msgspec.json.encode(texts)[1:-1])
    else:
        form = _FORMATS[kind]
        width = struct.calcsize(f"<{form}")
        for start in range(0, count, 4096):
            n = min(4096, count - start)
            numbers = struct.unpack(f"<{n}{form}", cursor.take(n * width))
            pieces.append(msgspec.json.encode(numbers)[1:-1])
    return b"[" + b",".join(pieces) + b"]"


def _kind(cursor: Cursor) -> str:
    kind = int(cursor.number("I"))
    if kind not in TYPE_NAMES:
        raise Malformed(f"a metadata value has the unknown type {kind}")
    return TYPE_NAMES[kind]
