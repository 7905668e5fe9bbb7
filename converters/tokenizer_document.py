"""The parts of tokenizer.json that conversion needs, typed and checked.

Why it exists: Gemma's file has 33 MB and half a million merges. json.loads makes a gigabyte of
small objects of it; msgspec decodes only the fields asked for. Flows in: a path. Flows out: a
TokenizerDocument, or the merges. Layout: the `tokenizers` library's own serialization. Not here:
what it means for a GGUF file (spm_vocabulary.py, bpe_vocabulary.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from converters.checkpoint import MAX_JSON_BYTES, refusal


class AddedToken(msgspec.Struct):
    """A token that is matched in the text before BPE."""

    id: int
    content: str
    special: bool = False


class Bpe(msgspec.Struct):
    """The BPE model without its merges."""

    vocab: dict[str, int]
    type: str | None = None
    byte_fallback: bool | None = False


class BpeWithMerges(Bpe):
    """A merge is "a b", or ["a", "b"] since tokenizers 0.20."""

    merges: list[str | list[str]] = []


class _Shared(msgspec.Struct):
    added_tokens: list[AddedToken] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None


class TokenizerDocument(_Shared, kw_only=True):
    """tokenizer.json without merges."""

    model: Bpe


class _WithMerges(_Shared, kw_only=True):
    model: BpeWithMerges


def read_document(path: Path) -> TokenizerDocument:
    """Read tokenizer.json. Raises ConversionError when it is missing, too large or no BPE
    tokenizer."""
    document: TokenizerDocument = _read(path, TokenizerDocument)
    return document


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges in rank order. Raises ConversionError."""
    merges = _read(path, _WithMerges).model.merges
    pairs = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise refusal(path, "one of its merges is not a pair")
    return [(pair[0], pair[1]) for pair in pairs]


def _read(path: Path, kind: Any) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise refusal(path, f"it has over {MAX_JSON_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise refusal(path, error.strerror or str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal(
            path, f"it is not a BPE tokenizer: {error}", "only BPE tokenizers are supported"
        ) from None
